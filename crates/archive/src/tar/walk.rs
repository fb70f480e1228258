//! The files of an archive by name, links between them included.

use std::collections::BTreeMap;
use std::io::Read;

use gantry_errdefs::{Error, Result};

use super::{Member, MemberKind, Members};
use crate::Limits;

/// Members of an archive that is walked; that of an image has a few for each layer.
const MEMBER_COUNT_MAX: usize = 100_000;

/// Times a link between members is followed.
const LINK_COUNT_MAX: usize = 16;

/// What [`walk`] comes by. Names are without `.`, `..` and doubled slashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A file begins; pieces follow until the next find of another kind.
    File {
        /// Its name.
        name: &'a str,
        /// Its length in bytes.
        size: u64,
    },
    /// A piece of it.
    Piece(&'a [u8]),
    /// One member is another.
    Link {
        /// Its name.
        name: &'a str,
        /// The member it stands for.
        to: &'a str,
    },
}

/// Reads a plain tar to its end and tells of each file and link. Blocks.
///
/// # Errors
/// InvalidArgument for a bad archive, one with over 100,000 members, or a member that is neither
/// file, directory nor link; what `found` returns.
pub fn walk(reader: impl Read, mut found: impl FnMut(Found<'_>) -> Result<()>) -> Result<()> {
    let mut members = Members::new(reader, Limits::default());
    let mut count = 0;
    while let Some(Member { name, kind, size }) = members.next()? {
        count += 1;
        if count > MEMBER_COUNT_MAX {
            let text = format!("the archive has over {MEMBER_COUNT_MAX} members");
            return Err(Error::invalid_argument(text));
        }
        let name = &clean(&name);
        match kind {
            MemberKind::File => {
                found(Found::File { name, size })?;
                members.content(|piece| found(Found::Piece(piece)))?;
            }
            MemberKind::Symlink(to) => {
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                found(Found::Link { name, to: &clean(&format!("{dir}/{to}")) })?;
            }
            MemberKind::Hardlink(to) => found(Found::Link { name, to: &clean(&to) })?,
            MemberKind::Dir => {}
            MemberKind::Other => {
                let text = format!("archive member {name}: it is no file");
                return Err(Error::invalid_argument(text));
            }
        }
    }
    Ok(())
}

/// The links of an archive.
#[derive(Debug, Default)]
pub struct Links(BTreeMap<String, String>);

impl Links {
    /// Notes that the member `name` stands for `to`.
    pub fn insert(&mut self, name: &str, to: &str) {
        self.0.insert(name.to_owned(), to.to_owned());
    }

    /// The member that `name`, however written, stands for in the end; none when its links go on
    /// and on.
    pub fn follow(&self, name: &str) -> Option<String> {
        let mut name = clean(name);
        for _ in 0..LINK_COUNT_MAX {
            match self.0.get(&name) {
                Some(to) => name.clone_from(to),
                None => return Some(name),
            }
        }
        None
    }
}

/// A member name without `.`, `..` and doubled slashes. Names only find each other here: no file
/// is made by them.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_their_end() {
        let mut links = Links::default();
        links.insert("a", "b");
        links.insert("b", "c/d");
        links.insert("round", "round");
        assert_eq!(links.follow("./x/../a").as_deref(), Some("c/d"));
        assert_eq!(links.follow("c//d").as_deref(), Some("c/d"));
        assert_eq!(links.follow("round"), None);
    }
}
