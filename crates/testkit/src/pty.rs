//! A command on a terminal of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::command::exit_code;
use crate::patience::eventually;

/// The terminal starts at this size.
const SIZE: rustix::termios::Winsize =
    rustix::termios::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// A command running on a pseudo terminal; killed on drop.
#[derive(Debug)]
pub struct Pty {
    child: Child,
    master: File,
    seen: Arc<Mutex<Vec<u8>>>,
    timeout: Duration,
}

impl Pty {
    pub(crate) fn spawn(mut command: Command, timeout: Duration) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo terminal");
        grantpt(&master).expect("granting the terminal");
        unlockpt(&master).expect("unlocking the terminal");
        let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
        rustix::termios::tcsetwinsize(&master, SIZE).expect("sizing the terminal");
        let open = || -> OwnedFd {
            use rustix::fs::{Mode, OFlags};
            rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
                .expect("opening the terminal")
        };
        let child = command
            .stdin(Stdio::from(open()))
            .stdout(Stdio::from(open()))
            .stderr(Stdio::from(open()))
            .spawn()
            .expect("starting a command on a terminal");
        // The command object holds the terminal's other end open until it is dropped.
        drop(command);
        let master = File::from(master);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut reader = master.try_clone().expect("duplicating the terminal");
        let sink = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 4096];
            // The read fails (EIO) once the last process has left the terminal.
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                sink.lock().expect("no panic under the lock").extend_from_slice(&buffer[..n]);
            }
        });
        Self { child, master, seen, timeout }
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("typing into the terminal");
    }

    /// Changes the terminal's size, which signals the command.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ..SIZE };
        rustix::termios::tcsetwinsize(&self.master, size).expect("sizing the terminal");
    }

    /// Everything shown so far.
    pub fn seen(&self) -> String {
        let seen = self.seen.lock().expect("no panic under the lock");
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Waits until `text` has been shown.
    ///
    /// # Panics
    /// When patience ends.
    pub fn wait_for(&self, text: &str) {
        eventually(&format!("the terminal shows {text:?}"), || {
            let seen = self.seen();
            if seen.contains(text) { Ok(()) } else { Err(format!("it shows {seen:?}")) }
        });
    }

    /// Waits for the command's end; returns its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting for our own child") {
                return exit_code(status);
            }
            assert!(Instant::now() < deadline, "still running; it shows {:?}", self.seen());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
