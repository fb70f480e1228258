//! Requests to registries and their answers as text, for people who look for a fault.

use std::fmt;
use std::sync::Arc;

use crate::steps::{Observer, Step};

/// Tells of requests and answers, line by line; no line holds a secret. Cheap to clone.
#[derive(Clone)]
pub struct HttpLog {
    /// The heads of requests and answers.
    pub dump: bool,
    /// What is asked, how long the answer takes, which hosts are passed over.
    pub trace: bool,
    out: Arc<dyn Fn(String) + Send + Sync>,
}

impl HttpLog {
    /// A log of as much as is asked for; `out` gets the lines. It is called in the middle of
    /// requests and must not wait.
    pub fn new(dump: bool, trace: bool, out: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self { dump, trace, out: Arc::new(out) }
    }

    /// Hands on a line that someone else wrote.
    pub fn line(&self, line: String) {
        (self.out)(line);
    }
}

impl fmt::Debug for HttpLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dump, trace) = (self.dump, self.trace);
        f.debug_struct("HttpLog").field("dump", &dump).field("trace", &trace).finish()
    }
}

impl Observer for HttpLog {
    fn step(&self, step: Step) {
        let wanted = if matches!(step, Step::Heads { .. }) { self.dump } else { self.trace };
        if wanted {
            step.lines().into_iter().for_each(|line| self.line(line));
        }
    }

    fn heads(&self) -> bool {
        self.dump
    }
}
