//! Users and groups by name, from a container's own `/etc/passwd` and `/etc/group`.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use gantry_errdefs::{Error, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes: they come from images.
const DATABASE_SIZE_MAX: u64 = 4 << 20;

/// The ids a process runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Further groups, the primary one included, without repetition.
    pub groups: Vec<u32>,
}

/// The text of `/etc/passwd` and `/etc/group`; lines that don't parse are skipped.
#[derive(Clone, Debug, Default)]
pub struct UserDatabase {
    passwd: String,
    group: String,
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl UserDatabase {
    /// Takes the two texts.
    pub fn new(passwd: impl Into<String>, group: impl Into<String>) -> Self {
        Self { passwd: passwd.into(), group: group.into() }
    }

    /// Reads both files of the root filesystem mounted at `root`. Symbolic links are followed
    /// within it only. Missing files count as empty.
    ///
    /// # Errors
    /// An I/O error naming the file, or ResourceExhausted for a file over 4 MiB.
    pub fn from_rootfs(root: &Path) -> Result<Self> {
        let read = |name: &str| {
            read_within(root, name)
                .map_err(|e| e.context(format!("{} in {}", name, root.display())))
        };
        Ok(Self { passwd: read("etc/passwd")?, group: read("etc/group")? })
    }

    /// Resolves `user[:group]`, each a name or a number. An empty text is root. A number need
    /// not be listed; its group is then 0.
    ///
    /// # Errors
    /// NotFound for a name that is not listed; InvalidArgument for a number out of range.
    pub fn resolve(&self, text: &str) -> Result<User> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let line = self.find_user(user)?;
        let (uid, mut gid) = match (&line, number(user)?) {
            (Some(line), _) => (line.uid, line.gid),
            (None, Some(uid)) => (uid, 0),
            (None, None) if user.is_empty() || user == "root" => (0, 0),
            (None, None) => return Err(Error::not_found(format!("user {user:?} of the image"))),
        };
        if let Some(group) = group.filter(|g| !g.is_empty()) {
            gid = self.find_group(group)?;
        }
        let name = line.map_or(user, |l| l.name);
        Ok(User { uid, gid, groups: self.groups_of(name, gid) })
    }

    fn find_user(&self, user: &str) -> Result<Option<PasswdLine<'_>>> {
        let wanted = if user.is_empty() { Some(0) } else { number(user)? };
        let lines = || self.passwd.lines().filter_map(parse_passwd);
        Ok(lines()
            .find(|l| !user.is_empty() && l.name == user)
            .or_else(|| lines().find(|l| Some(l.uid) == wanted)))
    }

    fn find_group(&self, group: &str) -> Result<u32> {
        let listed = self.group_lines().find(|(name, _, _)| *name == group);
        match (listed, number(group)?) {
            (Some((_, gid, _)), _) | (None, Some(gid)) => Ok(gid),
            (None, None) => Err(Error::not_found(format!("group {group:?} of the image"))),
        }
    }

    fn groups_of(&self, name: &str, gid: u32) -> Vec<u32> {
        let mut groups = vec![gid];
        let name = if name.is_empty() { "root" } else { name };
        for (_, id, members) in self.group_lines() {
            if !groups.contains(&id) && members.split(',').any(|m| m == name) {
                groups.push(id);
            }
        }
        groups
    }

    fn group_lines(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

fn parse_passwd(line: &str) -> Option<PasswdLine<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(PasswdLine { name, uid, gid })
}

/// The number `text` is, if it is one.
fn number(text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let out_of_range = |_| Error::invalid_argument(format!("id {text}: out of range"));
    text.parse::<i32>().map(|n| Some(n.unsigned_abs())).map_err(out_of_range)
}

fn read_within(root: &Path, name: &str) -> Result<String> {
    use rustix::io::Errno;
    let io = |e: Errno| Error::io("opening", e.into());
    let directory =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io)?;
    // NONBLOCK: an image may have a FIFO there, and opening it must not hang.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file: OwnedFd =
        match rustix::fs::openat2(directory, name, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
            Err(e) => return Err(io(e)),
        };
    let stat = rustix::fs::fstat(&file).map_err(io)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(DATABASE_SIZE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("reading", e))?;
    if bytes.len() as u64 > DATABASE_SIZE_MAX {
        let why = format!("larger than {DATABASE_SIZE_MAX} bytes");
        return Err(Error::resource_exhausted(why));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
