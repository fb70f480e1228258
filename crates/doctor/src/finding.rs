//! What the doctor says of a thing.

/// What is the matter with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing refers to it.
    Orphan,
    /// It is not what it should be.
    Damaged,
}

impl State {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Orphan => "orphan",
            Self::Damaged => "damaged",
        }
    }
}

/// One orphaned or damaged thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is: `blob`, `snapshot`, `mount`, `shim`, `bundle`, `cgroup`, `lease`, `ingest`,
    /// `fifo`, `socket`.
    pub kind: &'static str,
    /// Whose it is; empty when nobody's.
    pub namespace: String,
    /// Its digest, name, path or pid.
    pub id: String,
    /// What is the matter.
    pub state: State,
    /// Why it exists, or what is wrong with it.
    pub reason: String,
    /// What fixing does, or did.
    pub remedy: &'static str,
    /// It has been done.
    pub fixed: bool,
    /// Why it could not be done.
    pub error: String,
}
