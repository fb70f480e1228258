//! How long a shim may take.

use std::time::Duration;

use gantry_core::deadlines as table;

/// Makes [`Deadlines`], a field for each row of the table.
macro_rules! of_table {
    ($($field:ident = $row:ident,)+) => {
        /// Limits on every call to a shim: the `SHIM_` rows of [`gantry_core::deadlines`], which
        /// says what each is of, and of which the configuration's `[timeouts]` may change those
        /// that say so.
        ///
        /// `Wait` has none: it ends with the process, or with the connection to the shim.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Deadlines {
            $(
                #[doc = concat!("[`", stringify!($row), "`](table::", stringify!($row), ").")]
                pub $field: Duration,
            )+
        }

        impl Default for Deadlines {
            fn default() -> Self {
                Self { $($field: table::$row,)+ }
            }
        }
    };
}

of_table! {
    start_shim = SHIM_LAUNCH,
    connect_new = SHIM_CONNECT,
    load = SHIM_LOAD,
    cleanup = SHIM_CLEANUP,
    shutdown = SHIM_SHUTDOWN,
    state = SHIM_STATE,
    stats = SHIM_STATS,
    info = SHIM_INFO,
    create = SHIM_CREATE,
    start = SHIM_START,
    delete = SHIM_DELETE,
    freeze = SHIM_FREEZE,
    checkpoint = SHIM_CHECKPOINT,
    upgrade = SHIM_UPGRADE,
    runtime = SHIM_RUNTIME,
    memory = SHIM_MEMORY,
}
