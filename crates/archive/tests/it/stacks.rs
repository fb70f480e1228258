//! Random stacks of layers, applied in four ways that must agree: a model in memory, one tree
//! after the other, overlay uppers that know what is below, and overlay uppers made side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use gantry_archive::{ApplyOptions, Lowers, apply, settle};
use proptest::prelude::*;

use crate::overlay::{Scratch, upper_options};
use crate::support::{DEFAULT_ACL, Header, Node, Snapshot, Tar, acl, snapshot};

#[derive(Clone, Debug)]
enum Op {
    Dir(String, u32),
    /// A directory with a default access control list, which nothing in it may inherit.
    Giving(String),
    File(String, Vec<u8>),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|p| p.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), prop::sample::select(vec![0o755, 0o700])).prop_map(|(p, m)| Op::Dir(p, m)),
        2 => path().prop_map(Op::Giving),
        4 => (path(), prop::collection::vec(any::<u8>(), 0..5)).prop_map(|(p, d)| Op::File(p, d)),
        1 => (path(), path()).prop_map(|(p, to)| Op::Symlink(p, to)),
        2 => (path(), path()).prop_map(|(p, to)| Op::Link(p, to)),
        3 => path().prop_map(Op::Whiteout),
        2 => path().prop_map(Op::Opaque),
    ]
}

/// What a path of the model is: kind, data (with the values of extended attributes behind it) and
/// permission bits.
type Inode = (&'static str, Vec<u8>, u32);

/// A tree of paths, and the rules of the OCI layer specification.
#[derive(Clone, Debug, Default)]
struct Model(BTreeMap<String, Inode>);

fn is_under(path: &str, dir: &str) -> bool {
    path.len() > dir.len() && path.starts_with(dir) && path.as_bytes()[dir.len()] == b'/'
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

impl Model {
    fn is(&self, path: &str, kind: &str) -> bool {
        self.0.get(path).is_some_and(|i| i.0 == kind)
    }

    /// Whether every parent is a directory, or (when `missing_ok`) not there.
    fn reachable(&self, path: &str, missing_ok: bool) -> bool {
        parents(path).all(|p| self.is(p, "dir") || (missing_ok && !self.0.contains_key(p)))
    }

    fn remove(&mut self, path: &str, keep: &BTreeSet<String>) {
        let kept = |p: &String| keep.iter().any(|k| k == p || is_under(k, p));
        self.0.retain(|p, _| !(p == path || is_under(p, path)) || kept(p));
    }

    fn put(&mut self, path: &str, inode: Inode, written: &mut BTreeSet<String>) {
        for parent in parents(path) {
            self.0.entry(parent.to_owned()).or_insert(("dir", Vec::new(), 0o755));
        }
        if !(inode.0 == "dir" && self.is(path, "dir")) {
            written.retain(|w| w != path && !is_under(w, path));
            self.remove(path, written);
        }
        self.0.insert(path.to_owned(), inode);
        written.insert(path.to_owned());
    }

    /// Applies what makes sense of a layer and returns it as an archive.
    fn layer(&mut self, ops: &[Op]) -> Vec<u8> {
        let mut written = BTreeSet::new();
        let mut tar = Tar::new();
        for op in ops {
            match op {
                Op::Dir(path, mode) if self.reachable(path, true) => {
                    self.put(path, ("dir", Vec::new(), *mode), &mut written);
                    tar = tar.header(&Header { mode: *mode, ..Header::new(path, b'5') });
                }
                Op::Giving(path) if self.reachable(path, true) => {
                    self.put(path, ("dir", acl(), 0o770), &mut written);
                    let header = Header { mode: 0o770, ..Header::new(path, b'5') };
                    tar = tar.pax(&[(DEFAULT_ACL, &acl())]).header(&header);
                }
                Op::File(path, data) if self.reachable(path, true) => {
                    self.put(path, ("file", data.clone(), 0o644), &mut written);
                    tar = tar.file(path, data);
                }
                Op::Symlink(path, to) if self.reachable(path, true) => {
                    self.put(path, ("symlink", to.as_bytes().to_vec(), 0o777), &mut written);
                    tar = tar.symlink(path, to);
                }
                Op::Link(path, to)
                    if self.reachable(path, true)
                        && self.reachable(to, false)
                        && path != to
                        && !is_under(to, path)
                        && self.0.get(to).is_some_and(|i| i.0 != "dir") =>
                {
                    let inode = self.0[to].clone();
                    self.put(path, inode, &mut written);
                    tar = tar.hardlink(path, to);
                }
                Op::Whiteout(path) if self.reachable(path, true) => {
                    self.remove(path, &written);
                    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
                    tar = tar.file(format!("{dir}/.wh.{name}"), "");
                }
                Op::Opaque(path) if self.is(path, "dir") && self.reachable(path, false) => {
                    let dir = self.0[path].clone();
                    self.remove(path, &written);
                    self.0.insert(path.clone(), dir);
                    tar = tar.file(format!("{path}/.wh..wh..opq"), "");
                }
                _ => {}
            }
        }
        tar.finish()
    }
}

/// What the ways must agree on: all but which names share an inode (a hard link to a lower file
/// is a copy of it in an overlay) and the times of directories nobody named.
fn comparable(mut tree: Snapshot) -> Snapshot {
    for node in tree.values_mut() {
        node.same_as.clear();
        if node.mtime.0 > 1_700_000_000 {
            node.mtime = (0, 0);
        }
    }
    tree
}

fn check(stack: &[Vec<Op>]) -> Result<(), TestCaseError> {
    let scratch = Scratch::new();
    let tree = scratch.make("tree");
    let mut model = Model::default();
    let (mut known, mut alone): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for (i, ops) in stack.iter().enumerate() {
        let layer = model.layer(ops);
        let applied = apply(layer.as_slice(), &tree, &ApplyOptions::default());
        prop_assert!(applied.is_ok(), "layer {}: {:?}", i, applied);

        let upper = scratch.make(&format!("known{i}"));
        let options = upper_options(Lowers::Known(known.clone()));
        let applied = apply(layer.as_slice(), &upper, &options);
        prop_assert!(applied.is_ok(), "layer {} with lowers: {:?}", i, applied);
        known.insert(0, upper);

        let mut upper = scratch.make(&format!("alone{i}"));
        let unknown = upper_options(Lowers::Unknown);
        let applied = apply(layer.as_slice(), &upper, &unknown);
        let settled =
            applied.and_then(|applied| settle(&upper, unknown.target, &alone, &applied.unsettled));
        match settled {
            Ok(()) => {}
            Err(err) => {
                prop_assert!(err.is_failed_precondition(), "layer {}: {}", i, err);
                upper = scratch.make(&format!("again{i}"));
                let options = upper_options(Lowers::Known(alone.clone()));
                let applied = apply(layer.as_slice(), &upper, &options);
                prop_assert!(applied.is_ok(), "layer {} again: {:?}", i, applied);
            }
        }
        alone.insert(0, upper);
    }
    let want = comparable(snapshot(&tree));
    let data = |n: &Node| n.xattrs.iter().fold(n.data.clone(), |d, (_, v)| [d, v.clone()].concat());
    let seen: BTreeMap<_, _> =
        want.iter().map(|(p, n)| (p.clone(), (n.kind.clone(), data(n), n.mode))).collect();
    let model: BTreeMap<_, _> = model
        .0
        .into_iter()
        .map(|(p, (kind, data, mode))| (p, (kind.to_owned(), data, mode)))
        .collect();
    prop_assert_eq!(&seen, &model, "the tree is not what the model says");
    let empty = scratch.make("empty");
    for (what, mut lowers) in [("known", known), ("alone", alone)] {
        // The kernel wants two lower directories where there is no upper one.
        lowers.push(empty.clone());
        lowers.push(scratch.make(&format!("bottom-{what}")));
        let merged = scratch.mount(None, &lowers);
        let got = comparable(snapshot(merged.merged.path()));
        merged.merged.unmount().unwrap();
        prop_assert_eq!(&got, &want, "the overlay of layers applied {} differs", what);
    }
    Ok(())
}

/// How many stacks are tried.
const CASES: u32 = 64;

/// Tries random stacks within this process, wherever it is.
pub(crate) fn check_random_stacks() {
    let stacks = prop::collection::vec(prop::collection::vec(op(), 0..12), 1..5);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(CASES));
    runner.run(&stacks, |stack| check(&stack)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn root_every_way_of_applying_a_stack_gives_the_same_tree(
        stack in prop::collection::vec(prop::collection::vec(op(), 0..12), 1..5),
    ) {
        check(&stack)?;
    }
}

/// Cases the generator found once.
#[test]
fn root_stacks_that_went_wrong_before() {
    let dir = |p: &str| Op::Dir(p.into(), 0o755);
    let file = |p: &str| Op::File(p.into(), vec![1]);
    let wh = |p: &str| Op::Whiteout(p.into());
    check(&[vec![dir("a"), file("a/b")], vec![wh("a")], vec![file("a/c")]]).unwrap();
    check(&[vec![file("a/b")], vec![file("a"), dir("a")]]).unwrap();
    check(&[vec![file("a")], vec![dir("c"), wh("c/a")]]).unwrap();
    check(&[vec![Op::Dir("a/b".into(), 0o700)], vec![file("a/b/c"), Op::Opaque("a".into())]])
        .unwrap();
    check(&[vec![file("a")], vec![wh("a"), file("a/b/c"), Op::Opaque("a".into())]]).unwrap();
    let giving = |p: &str| Op::Giving(p.into());
    check(&[vec![giving("a"), file("a/b/c")], vec![file("a/c"), dir("a/a")]]).unwrap();
    check(&[vec![giving("a"), file("a/b")], vec![dir("a"), file("a/c")]]).unwrap();
    check(&[vec![file("a")], vec![dir("c"), wh("c/a"), file("c/a")]]).unwrap();
    check(&[vec![file("a")], vec![dir("c"), wh("c/a"), file("c")]]).unwrap();
    check(&[vec![dir("a/b/c")], vec![Op::Opaque("a".into()), dir("a/b")]]).unwrap();
}
