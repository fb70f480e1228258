//! Layer tars, built entry by entry.

use std::io::Write;

use gantry_core::{Digest, media_types};

/// Bytes of a name in a tar header.
const NAME_LEN: usize = 100;

/// Modification time of every entry, so that the same layer has the same digest in every run.
const ENTRY_MTIME_SECS: u64 = 1_600_000_000;

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip, what most registries hold.
    #[default]
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// The OCI (or, with `docker`, the Docker) media type of a layer compressed so.
    pub fn media_type(self, docker: bool) -> &'static str {
        match (self, docker) {
            (Self::None, false) => media_types::OCI_LAYER,
            (Self::Gzip, false) => media_types::OCI_LAYER_GZIP,
            (Self::Zstd, false) => media_types::OCI_LAYER_ZSTD,
            (Self::None, true) => media_types::DOCKER_LAYER,
            (Self::Gzip, true) => media_types::DOCKER_LAYER_GZIP,
            (Self::Zstd, true) => media_types::DOCKER_LAYER_ZSTD,
        }
    }

    /// `tar` in this compression.
    pub fn compress(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::None => tar.to_vec(),
            Self::Gzip => {
                let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                w.write_all(tar).expect("writing to memory");
                w.finish().expect("writing to memory")
            }
            Self::Zstd => zstd::encode_all(tar, 1).expect("writing to memory"),
        }
    }
}

/// A layer: tar entries in the order they were added.
///
/// Names go into the tar as they are given, so that attacks (`../x`, absolute names) can be
/// built too.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: Vec<Entry>,
    compression: Option<Compression>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    link: Option<String>,
    data: Vec<u8>,
    device: Option<(u32, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Layer {
    /// A layer without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compresses this layer in another way than the image's.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Adds a regular file owned by root.
    #[must_use]
    pub fn file(self, name: &str, mode: u32, data: impl Into<Vec<u8>>) -> Self {
        let mut entry = Entry::new(name, tar::EntryType::Regular, mode);
        entry.data = data.into();
        self.push(entry)
    }

    /// Adds a directory owned by root.
    #[must_use]
    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.push(Entry::new(name, tar::EntryType::Directory, mode))
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        let mut entry = Entry::new(name, tar::EntryType::Symlink, 0o777);
        entry.link = Some(target.to_owned());
        self.push(entry)
    }

    /// Adds a hard link to a name of this or a lower layer.
    #[must_use]
    pub fn hardlink(self, name: &str, target: &str) -> Self {
        let mut entry = Entry::new(name, tar::EntryType::Link, 0o755);
        entry.link = Some(target.to_owned());
        self.push(entry)
    }

    /// Adds a character device.
    #[must_use]
    pub fn char_device(self, name: &str, major: u32, minor: u32) -> Self {
        let mut entry = Entry::new(name, tar::EntryType::Char, 0o666);
        entry.device = Some((major, minor));
        self.push(entry)
    }

    /// Adds a FIFO.
    #[must_use]
    pub fn fifo(self, name: &str) -> Self {
        self.push(Entry::new(name, tar::EntryType::Fifo, 0o644))
    }

    /// Hides `name` of the layers below (OCI whiteout `.wh.<base>`).
    #[must_use]
    pub fn whiteout(self, name: &str) -> Self {
        let (dir, base) = name.rsplit_once('/').map_or(("", name), |(d, b)| (d, b));
        let marker =
            if dir.is_empty() { format!(".wh.{base}") } else { format!("{dir}/.wh.{base}") };
        self.file(&marker, 0o600, "")
    }

    /// Hides everything the layers below have in the directory `name` (opaque whiteout).
    #[must_use]
    pub fn opaque(self, name: &str) -> Self {
        self.dir(name, 0o755).file(&format!("{name}/.wh..wh..opq"), 0o600, "")
    }

    /// Gives the entry added last to `uid`:`gid`.
    #[must_use]
    pub fn owned_by(mut self, uid: u64, gid: u64) -> Self {
        let entry = self.entries.last_mut().expect("owned_by follows an entry");
        entry.owner = (uid, gid);
        self
    }

    /// Puts an extended attribute on the entry added last (as a PAX record).
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        let entry = self.entries.last_mut().expect("xattr follows an entry");
        entry.xattrs.push((name.to_owned(), value.into()));
        self
    }

    /// The plain tar of this layer.
    pub fn tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for entry in &self.entries {
            entry.append(&mut builder);
        }
        builder.into_inner().expect("writing to memory")
    }

    /// The digest of the plain tar.
    pub fn diff_id(&self) -> Digest {
        Digest::of(&self.tar())
    }

    pub(crate) fn own_compression(&self) -> Option<Compression> {
        self.compression
    }

    fn push(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }
}

impl Entry {
    fn new(name: &str, kind: tar::EntryType, mode: u32) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            mode,
            owner: (0, 0),
            link: None,
            data: Vec::new(),
            device: None,
            xattrs: Vec::new(),
        }
    }

    fn append(&self, builder: &mut tar::Builder<Vec<u8>>) {
        let mut records: Vec<_> =
            self.xattrs.iter().map(|(k, v)| (format!("SCHILY.xattr.{k}"), v.as_slice())).collect();
        if self.name.len() > NAME_LEN {
            records.push(("path".to_owned(), self.name.as_bytes()));
        }
        if let Some(link) = self.link.as_ref().filter(|link| link.len() > NAME_LEN) {
            records.push(("linkpath".to_owned(), link.as_bytes()));
        }
        builder
            .append_pax_extensions(records.iter().map(|(k, v)| (k.as_str(), *v)))
            .expect("writing to memory");
        let mut header = tar::Header::new_gnu();
        set_raw(&mut header.as_old_mut().name, &self.name);
        if let Some(link) = &self.link {
            set_raw(&mut header.as_old_mut().linkname, link);
        }
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(ENTRY_MTIME_SECS);
        header.set_size(self.data.len() as u64);
        if let Some((major, minor)) = self.device {
            header.set_device_major(major).expect("a GNU header has device numbers");
            header.set_device_minor(minor).expect("a GNU header has device numbers");
        }
        header.set_cksum();
        builder.append(&header, self.data.as_slice()).expect("writing to memory");
    }
}

/// Writes a name as it is, past the checks of the tar crate. Of a longer one, which a PAX record
/// gives whole, the header has the beginning.
fn set_raw(field: &mut [u8; NAME_LEN], text: &str) {
    let len = text.len().min(NAME_LEN);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
}
