//! The command line, in the style of Go's `flag` package.
//!
//! Daemons write `-namespace N`, people write `--namespace=N`; both are the same flag.

use gantry_errdefs::{Error, Result};

/// What the process was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start (or find) the serving process and print its address.
    Start,
    /// Clean up after a shim that died.
    Delete,
    /// Serve on the socket that is standard input: how `start`, and our daemon directly, run it.
    Serve,
    /// Take over from the program before this one in this process, or say whether that would do.
    TakeOver,
    /// Print the version (`-v`).
    Version,
    /// Print a `RuntimeInfo` (`-info`).
    Info,
}

/// The flags of E3, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// The action word after the flags.
    pub action: Option<Action>,
    /// `-namespace`: the daemon's namespace of the container.
    pub namespace: String,
    /// `-id`: the container or sandbox.
    pub id: String,
    /// `-address`: the daemon's gRPC socket.
    pub address: String,
    /// `-publish-binary`: the daemon's binary, for events when there is no ttrpc address.
    pub publish_binary: String,
    /// `-bundle`: the bundle directory; the working directory when not given.
    pub bundle: String,
    /// `-socket`: accepted and not used; old daemons send it.
    pub socket: String,
    /// `-debug`: log more.
    pub debug: bool,
    /// `-state-fd`: the descriptor with the state to take over.
    pub state_fd: String,
    /// `-check`: only say whether the state on standard input can be taken over.
    pub check: bool,
}

impl Args {
    /// Parses the arguments after the program's name.
    ///
    /// # Errors
    /// InvalidArgument for a flag without its value or an unknown action. Unknown flags are
    /// skipped, since newer daemons may add some.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut out = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                out.action.get_or_insert(action(&arg)?);
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => out.debug = truth(inline.as_deref()),
                "check" => out.check = truth(inline.as_deref()),
                "v" | "version" => out.action = Some(Action::Version),
                "info" => out.action = Some(Action::Info),
                _ => {
                    let Some(field) = out.text_flag(name) else { continue };
                    *field = inline.or_else(|| args.next()).ok_or_else(|| {
                        Error::invalid_argument(format!("flag needs an argument: -{name}"))
                    })?;
                }
            }
        }
        Ok(out)
    }

    /// The flags that a program serves by, as arguments.
    pub(crate) fn flags(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (name, value) in [
            ("-namespace", &self.namespace),
            ("-id", &self.id),
            ("-address", &self.address),
            ("-publish-binary", &self.publish_binary),
        ] {
            if !value.is_empty() {
                out.extend([name.to_owned(), value.clone()]);
            }
        }
        if self.debug {
            out.push("-debug".to_owned());
        }
        out
    }

    fn text_flag(&mut self, name: &str) -> Option<&mut String> {
        Some(match name {
            "namespace" => &mut self.namespace,
            "id" => &mut self.id,
            "address" => &mut self.address,
            "publish-binary" => &mut self.publish_binary,
            "bundle" => &mut self.bundle,
            "socket" => &mut self.socket,
            "state-fd" => &mut self.state_fd,
            _ => return None,
        })
    }
}

fn action(word: &str) -> Result<Action> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        "serve" => Ok(Action::Serve),
        "takeover" => Ok(Action::TakeOver),
        other => Err(Error::invalid_argument(format!("shim: unknown action {other:?}"))),
    }
}

fn truth(value: Option<&str>) -> bool {
    !matches!(value, Some("false" | "0" | "f" | "F" | "FALSE" | "False"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn go_style_and_gnu_style_are_the_same() {
        let go = parse("-namespace ns -address /a -publish-binary /b -id x -debug start");
        let gnu = parse("--namespace=ns --address=/a --publish-binary=/b --id=x --debug start");
        let (go, gnu) = (go.expect("parses"), gnu.expect("parses"));
        assert_eq!(go, gnu);
        assert_eq!(go.action, Some(Action::Start));
        assert!(go.debug);
    }

    #[test]
    fn flags_are_read_back() {
        let args = parse("-namespace ns -address /a -id x -debug").expect("parses");
        assert_eq!(Args::parse(args.flags()).expect("parses"), args);
    }

    #[test]
    fn what_is_unknown_or_unfinished() {
        assert!(parse("-novelty start").is_ok());
        assert!(parse("-id").expect_err("no value").is_invalid_argument());
        assert!(parse("explode").expect_err("no such action").is_invalid_argument());
        assert!(!parse("-debug=false delete").expect("parses").debug);
        assert_eq!(parse("-v").expect("parses").action, Some(Action::Version));
    }
}
