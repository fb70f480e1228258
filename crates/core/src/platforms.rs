//! Platforms: parsing, normal form, and which image serves which host.
//!
//! Names are Go's (`linux`, `amd64`), since registries are filled by Go programs. The normal form
//! leaves out the variant that a bare architecture means: `arm64` is v8 and `amd64` is v1; for
//! 32-bit arm it is spelt out (`arm/v7`).

use std::fmt;

use gantry_errdefs::{Error, Result};

use crate::Platform;

const KNOWN_OS: [&str; 16] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
];

const KNOWN_ARCH: [&str; 21] = [
    "386", "amd64", "arm", "armbe", "arm64", "arm64be", "loong64", "mips", "mipsle", "mips64",
    "mips64le", "ppc", "ppc64", "ppc64le", "riscv", "riscv64", "s390", "s390x", "sparc", "sparc64",
    "wasm",
];

/// The lowest 32-bit arm version that images are built for.
const ARM_VERSION_MIN: u32 = 5;

/// The platform of this host.
pub fn default() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
        "powerpc64" => ("ppc64", ""),
        "loongarch64" => ("loong64", ""),
        other => (other, ""),
    };
    Platform {
        os: normalize_os(std::env::consts::OS),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..Platform::default()
    }
}

/// Parses `os`, `arch`, `os/arch` or `os/arch/variant`; what is missing comes from this host. The
/// operating system may carry a version and features in parentheses: `windows(10.0.17763)`,
/// `windows(10.0.17763+win32k)`.
///
/// # Errors
/// InvalidArgument naming the text and the part that is wrong.
pub fn parse(text: &str) -> Result<Platform> {
    let bad = |why: &str| Error::invalid_argument(format!("platform {text:?}: {why}"));
    if text.contains('*') {
        return Err(bad("wildcards are not supported"));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let (os_part, version, features) = split_os(parts[0]).ok_or_else(|| {
        bad("an operating system is name, or name(version), or name(version+feature)")
    })?;
    let valid = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    };
    if !valid(os_part) || !parts[1..].iter().all(|p| valid(p)) {
        return Err(bad("each part must match [A-Za-z0-9_.-]+"));
    }
    let host = default();
    let os = normalize_os(os_part);
    let mut platform = match parts[1..] {
        [] if KNOWN_OS.contains(&os.as_str()) => {
            let variant = if host.architecture == "arm64" { "" } else { host.variant.as_str() };
            on(&os, &host.architecture, variant)
        }
        [] => {
            let (architecture, variant) = normalize_arch(os_part, "");
            if !KNOWN_ARCH.contains(&architecture.as_str()) {
                return Err(bad("unknown operating system or architecture"));
            }
            on(&host.os, &architecture, &variant)
        }
        [arch] => {
            let (architecture, variant) = normalize_arch(arch, "");
            on(&os, &architecture, &variant)
        }
        [arch, variant] => {
            let (architecture, mut variant) = normalize_arch(arch, variant);
            if architecture == "arm64" && variant.is_empty() {
                variant = "v8".to_owned();
            }
            on(&os, &architecture, &variant)
        }
        _ => return Err(bad("it has more than three parts")),
    };
    platform.os_version = version.to_owned();
    platform.os_features = features;
    Ok(platform)
}

/// The text form, `os/arch[/variant]`; `unknown` when there is no operating system.
pub fn format(platform: &Platform) -> String {
    if platform.os.is_empty() {
        return "unknown".to_owned();
    }
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    parts.into_iter().filter(|p| !p.is_empty()).map(String::as_str).collect::<Vec<_>>().join("/")
}

/// The normal form: aliases replaced, implied variants left out.
#[must_use]
pub fn normalize(platform: &Platform) -> Platform {
    let (architecture, variant) = normalize_arch(&platform.architecture, &platform.variant);
    Platform { os: normalize_os(&platform.os), architecture, variant, ..platform.clone() }
}

/// Which platforms are acceptable, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    /// Normal forms in order of preference; None accepts every platform, all equally.
    accepted: Option<Vec<Platform>>,
}

impl Matcher {
    /// Accepts every platform.
    pub fn all() -> Self {
        Self { accepted: None }
    }

    /// Accepts what a `platform` host runs: itself first, then what its processor also executes
    /// (lower amd64 levels and 386; lower arm versions; 32-bit arm on arm64).
    pub fn only(platform: &Platform) -> Self {
        Self { accepted: Some(compatible(&normalize(platform))) }
    }

    /// Accepts `platform` and nothing else.
    pub fn only_strict(platform: &Platform) -> Self {
        Self { accepted: Some(vec![normalize(platform)]) }
    }

    /// Accepts each of `platforms` strictly, the first being the best.
    pub fn ordered(platforms: &[Platform]) -> Self {
        Self { accepted: Some(platforms.iter().map(normalize).collect()) }
    }

    /// What this host runs.
    pub fn host() -> Self {
        Self::only(&default())
    }

    /// How good `platform` is: 0 is best; None when it is not acceptable.
    pub fn rank(&self, platform: &Platform) -> Option<usize> {
        let Some(accepted) = &self.accepted else { return Some(0) };
        let platform = normalize(platform);
        accepted.iter().position(|want| {
            want.os == platform.os
                && want.architecture == platform.architecture
                && want.variant == platform.variant
                && (want.os_version.is_empty()
                    || platform.os_version.is_empty()
                    || same_os_build(&want.os_version, &platform.os_version))
        })
    }

    /// Whether `platform` is acceptable.
    pub fn matches(&self, platform: &Platform) -> bool {
        self.rank(platform).is_some()
    }

    /// The platform that is preferred to all others; None when all are equal.
    pub fn best(&self) -> Option<&Platform> {
        self.accepted.as_ref()?.first()
    }

    /// Whether every platform is acceptable.
    pub fn is_all(&self) -> bool {
        self.accepted.is_none()
    }
}

impl Default for Matcher {
    fn default() -> Self {
        Self::host()
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.accepted {
            None => f.write_str("all platforms"),
            Some(list) => f.write_str(&list.iter().map(format).collect::<Vec<_>>().join(", ")),
        }
    }
}

fn on(os: &str, architecture: &str, variant: &str) -> Platform {
    Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..Platform::default()
    }
}

/// Splits `name(version+feature+...)`.
fn split_os(part: &str) -> Option<(&str, &str, Vec<String>)> {
    let Some((name, rest)) = part.split_once('(') else { return Some((part, "", Vec::new())) };
    let mut options = rest.strip_suffix(')')?.split('+');
    let version = options.next().unwrap_or_default();
    Some((name, version, options.map(str::to_owned).collect()))
}

/// Windows images run on the build they were made for: major.minor.build are equal.
fn same_os_build(a: &str, b: &str) -> bool {
    a.split('.').take(3).eq(b.split('.').take(3))
}

fn normalize_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "" => std::env::consts::OS.to_owned(),
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

fn normalize_arch(arch: &str, variant: &str) -> (String, String) {
    let arch = arch.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (arch, variant) = match (arch.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "v9" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", v) => ("arm64", v),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        (a, v) => (a, v),
    };
    (arch.to_owned(), variant.to_owned())
}

/// `platform` (normal form) and what it also runs, best first.
fn compatible(platform: &Platform) -> Vec<Platform> {
    let mut list = vec![platform.clone()];
    let mut also = |architecture: &str, variant: String| {
        list.push(normalize(&Platform {
            architecture: architecture.to_owned(),
            variant,
            ..platform.clone()
        }));
    };
    let version = |default: u32| {
        let digits = platform.variant.trim_start_matches('v').split('.').next();
        digits.and_then(|d| d.parse::<u32>().ok()).unwrap_or(default)
    };
    match platform.architecture.as_str() {
        "amd64" => {
            (1..version(1)).rev().for_each(|v| also("amd64", format!("v{v}")));
            also("386", String::new());
        }
        "arm" => (ARM_VERSION_MIN..version(7)).rev().for_each(|v| also("arm", format!("v{v}"))),
        "arm64" => {
            if version(8) > 8 {
                also("arm64", String::new());
            }
            (ARM_VERSION_MIN..=8).rev().for_each(|v| also("arm", format!("v{v}")));
        }
        _ => {}
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_to_normal_form() {
        let host = default();
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6"),
            ("macos/i386", "darwin/386"),
            ("s390x", "linux/s390x"),
            ("arm64", "linux/arm64"),
            ("linux/made-up", "linux/made-up"),
        ] {
            assert_eq!(format(&parse(text).unwrap()), want, "{text}");
        }
        assert_eq!(parse("linux").unwrap().architecture, host.architecture);
        let windows = parse("windows(10.0.17763+win32k)/amd64").unwrap();
        assert_eq!((windows.os.as_str(), windows.os_version.as_str()), ("windows", "10.0.17763"));
        assert_eq!(windows.os_features, ["win32k"]);
    }

    #[test]
    fn refuses_what_is_no_platform() {
        for bad in ["", "linux/", "/amd64", "linux/*", "what", "a/b/c/d", "linux amd64", "x(y/z"] {
            assert!(parse(bad).unwrap_err().is_invalid_argument(), "{bad}");
        }
    }

    fn order(host: &str) -> String {
        Matcher::only(&parse(host).unwrap()).to_string()
    }

    #[test]
    fn prefers_what_is_nearest() {
        assert_eq!(order("linux/amd64"), "linux/amd64, linux/386");
        assert_eq!(
            order("linux/amd64/v3"),
            "linux/amd64/v3, linux/amd64/v2, linux/amd64, linux/386"
        );
        assert_eq!(order("linux/arm/v7"), "linux/arm/v7, linux/arm/v6, linux/arm/v5");
        assert_eq!(
            order("linux/arm64/v8"),
            "linux/arm64, linux/arm/v8, linux/arm/v7, linux/arm/v6, linux/arm/v5"
        );
        assert_eq!(order("linux/s390x"), "linux/s390x");
        let strict = Matcher::only_strict(&parse("linux/arm64").unwrap());
        assert!(strict.matches(&parse("linux/arm64/v8").unwrap()));
        assert!(!strict.matches(&parse("linux/arm/v7").unwrap()));
        assert!(Matcher::all().matches(&parse("windows/amd64").unwrap()));
        assert!(Matcher::host().matches(&default()));
    }

    #[test]
    fn windows_needs_its_build() {
        let host = Matcher::only(&parse("windows(10.0.17763.1)/amd64").unwrap());
        assert!(host.matches(&parse("windows(10.0.17763.99)/amd64").unwrap()));
        assert!(host.matches(&parse("windows/amd64").unwrap()));
        assert!(!host.matches(&parse("windows(10.0.20348)/amd64").unwrap()));
    }
}
