//! Signals to this program.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Resolves on SIGINT or SIGTERM; never when they can't be listened to.
pub(crate) async fn ended() {
    let streams = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = streams else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The signals that are passed on to a container in the foreground.
const FORWARDED: [i32; 6] = [
    1,  // HUP
    2,  // INT
    3,  // QUIT
    10, // USR1
    12, // USR2
    15, // TERM
];

/// Calls `deliver` with each signal this program gets; never returns.
pub(crate) async fn forward(mut deliver: impl AsyncFnMut(u32)) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<u32>(FORWARDED.len());
    for number in FORWARDED {
        let Ok(mut stream): Result<Signal, _> = signal(SignalKind::from_raw(number)) else {
            continue;
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(number.unsigned_abs()).await.is_err() {
                    return;
                }
            }
        });
    }
    while let Some(number) = receiver.recv().await {
        deliver(number).await;
    }
}

/// A signal by name (`TERM`, `SIGTERM`, any case) or number.
pub(crate) fn parse(text: &str) -> Result<u32, String> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().position(|n| *n == name).and_then(|n| u32::try_from(n + 1).ok());
    known
        .or_else(|| text.parse().ok().filter(|n| (1..=64).contains(n)))
        .ok_or_else(|| format!("unknown signal {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("SIGTERM", 15), ("kill", 9), ("9", 9), ("sigwinch", 28), ("34", 34)]
        {
            assert_eq!(parse(text), Ok(number));
        }
        for bad in ["", "0", "65", "SIGNONE"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
