//! Where the time of a container goes inside gantryd and its shim, down to the runtime's share.
//!
//! A gantryd of its own logs in detail: each phase is a span that tells its duration when it ends
//! (see `gantry_runtime`'s and the shim's `phase`). The log itself costs a little, so the sum is
//! more than a life takes otherwise; the shares are what to look at.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use gantry_errdefs::Result;
use gantry_testkit::Daemon;

use crate::life;
use crate::report::median;

/// Lives and execs that are looked at.
const ROUNDS: usize = 20;

/// Phases with what contains them, in the order they happen: name in the log, depth, words.
const PHASES: [(&str, usize, &str); 16] = [
    ("bundle", 0, "bundle (gantryd)"),
    ("start-shim", 0, "start of the shim, until connected (gantryd)"),
    ("shim-create", 0, "Create of the shim"),
    ("mount", 1, "mount of the root filesystem"),
    ("runtime-create", 1, "runc create"),
    ("find-cgroup", 1, "cgroups and watch for OOM"),
    ("runtime-start", 0, "start of the init (no runc)"),
    ("exit-record", 0, "exit record"),
    ("shim-delete", 0, "Delete of the shim"),
    ("runtime-delete", 1, "runc's record and cgroups (no runc)"),
    ("unmount", 1, "unmount of the root filesystem"),
    ("end-shim", 0, "Shutdown of the shim (gantryd)"),
    ("remove-bundle", 0, "removal of the bundle (gantryd)"),
    ("life", 0, "a whole life, all calls"),
    ("exec", 0, "exec: into the container, until its program runs"),
    ("whole-exec", 0, "a whole exec, all calls"),
];

#[allow(clippy::print_stdout, reason = "the report goes to standard output")]
pub(crate) async fn run() -> Result<()> {
    let root = crate::root()?;
    // The daemon of a test logs at debug level.
    let daemon = Daemon::gantryd().root(root.path());
    let (daemon, client) = crate::with_image(daemon.start()).await?;
    let mut times: HashMap<String, Vec<Duration>> = HashMap::new();
    for round in 0..ROUNDS {
        let begin = Instant::now();
        life::life(&client, &format!("phase-{round}")).await?;
        times.entry("life".into()).or_default().push(begin.elapsed());
    }
    life::create(&client, "execs", &["sleep", "1000"]).await?;
    life::start(&client, "execs").await?;
    for round in 0..ROUNDS {
        let begin = Instant::now();
        life::exec(&client, "execs", &format!("e{round}")).await?;
        times.entry("whole-exec".into()).or_default().push(begin.elapsed());
    }
    life::kill_and_remove(&client, "execs").await?;
    life::settle().await;
    for (name, took) in daemon.log().lines().filter_map(parse) {
        times.entry(name).or_default().push(took);
    }
    let whole = times.get("life").map_or(0.0, |all| median_ms(all));
    println!("\n{:<56} {:>9}   {:>6}", "gantry by phase (median)", "ms", "share");
    for (name, depth, words) in PHASES {
        let ms = times.get(name).map_or(0.0, |all| median_ms(all));
        let words = format!("{}{words}", "    ".repeat(depth));
        let is_exec = name.ends_with("exec");
        let share = if is_exec { String::new() } else { format!("{:5.1}%", ms / whole * 100.0) };
        println!("{words:<56} {ms:>9.2}   {share:>6}");
    }
    Ok(())
}

fn median_ms(times: &[Duration]) -> f64 {
    median(times.to_vec()).as_secs_f64() * 1e3
}

/// A line with `phase=NAME` and `micros=NUMBER`, the name perhaps in quotes.
fn parse(line: &str) -> Option<(String, Duration)> {
    let value = |key: &str| line.rsplit_once(key).map(|(_, rest)| rest.trim_start_matches('"'));
    let word =
        |text: &str, of: fn(char) -> bool| text.chars().take_while(|c| of(*c)).collect::<String>();
    let name = word(value("phase=")?, |c| c.is_ascii_lowercase() || c == '-');
    let micros = word(value("micros=")?, |c| c.is_ascii_digit()).parse().ok()?;
    (!name.is_empty()).then_some((name, Duration::from_micros(micros)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_line_are_read() {
        let ours = r#"DEBUG gantry_runtime::phase: id="c" phase="start-shim" micros=412"#;
        let took = Duration::from_micros(412);
        assert_eq!(parse(ours), Some(("start-shim".to_owned(), took)));
        let shims = r#"INFO shim: time="x" level=debug msg="phase=mount micros=412" id="c""#;
        assert_eq!(parse(shims), Some(("mount".to_owned(), took)));
        assert_eq!(parse("phase of the moon"), None);
    }
}
