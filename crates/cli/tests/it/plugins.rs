//! What the daemon says of itself.

use gantry_testkit::Daemon;
use serde_json::Value;

use crate::support::{World, with_client};

#[test]
fn root_runtimes_are_inspected() {
    with_client("gantry", Daemon::gantryd().start(), |world: &mut World| {
        let ctl = &world.ctl;
        let info: Value = serde_json::from_str(&ctl.ok(["plugins", "inspect-runtime"])).unwrap();
        assert_eq!(info["Name"], "io.containerd.runc.v2");
        assert!(info["Version"]["Version"].is_string(), "{info}");
        assert_eq!(info["Options"], Value::Null);
        let asked = ["plugins", "inspect-runtime", "--runc-binary", "no-such-runc"];
        let info: Value = serde_json::from_str(&ctl.ok(asked)).unwrap();
        assert_eq!(info["Options"]["binary_name"], "no-such-runc");
        assert_eq!(info["Features"], Value::Null, "that program does not exist");
        let failure = ctl.fail(["plugins", "inspect-runtime", "--runtime", "io.example.none.v1"]);
        assert!(failure.contains("io.example.none.v1"), "{failure}");
    });
}
