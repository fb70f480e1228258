//! Wire types and service traits of every containerd, shim, CRI and NRI package.
