//! Random calls against a model.

use std::collections::BTreeMap;

use gantry_core::Labels;
use gantry_errdefs::Class;
use gantry_snapshots::{CommitOptions, Kind, Snapshotter};
use proptest::prelude::*;

use crate::{Place, names};

#[derive(Clone, Debug)]
enum Call {
    Prepare(u8, Option<u8>),
    View(u8, Option<u8>),
    Commit(u8, u8, Option<u8>),
    Remove(u8),
    Cleanup,
    Reopen,
}

/// Kind and parent by name.
#[derive(Debug, Default)]
struct Model(BTreeMap<String, (Kind, Option<String>)>);

/// Few names, so that calls meet.
fn name(n: u8) -> String {
    format!("n{}", n % 6)
}

impl Model {
    fn parent(&self, parent: Option<&String>) -> Result<(), Class> {
        match parent.map(|p| self.0.get(p)) {
            Some(None) => Err(Class::NotFound),
            Some(Some((kind, _))) if *kind != Kind::Committed => Err(Class::InvalidArgument),
            _ => Ok(()),
        }
    }

    fn create(&mut self, kind: Kind, key: String, parent: Option<String>) -> Result<(), Class> {
        self.parent(parent.as_ref())?;
        if self.0.contains_key(&key) {
            return Err(Class::AlreadyExists);
        }
        self.0.insert(key, (kind, parent));
        Ok(())
    }

    fn commit(&mut self, name: String, key: &str, parent: Option<String>) -> Result<(), Class> {
        let (kind, old) = self.0.get(key).ok_or(Class::NotFound)?.clone();
        if kind != Kind::Active {
            return Err(Class::FailedPrecondition);
        }
        if self.0.contains_key(&name) {
            return Err(Class::AlreadyExists);
        }
        self.parent(parent.as_ref())?;
        if old.is_some() && parent.is_some() && old != parent {
            return Err(Class::FailedPrecondition);
        }
        self.0.remove(key);
        self.0.insert(name, (Kind::Committed, parent.or(old)));
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), Class> {
        if !self.0.contains_key(key) {
            return Err(Class::NotFound);
        }
        if self.0.values().any(|(_, parent)| parent.as_deref() == Some(key)) {
            return Err(Class::FailedPrecondition);
        }
        self.0.remove(key);
        Ok(())
    }

    /// Directories the snapshotter should have.
    fn dirs(&self) -> usize {
        self.0.values().filter(|(kind, parent)| *kind != Kind::View || parent.is_none()).count()
    }
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let any_parent = || proptest::option::of(any::<u8>());
    let call = prop_oneof![
        4 => (any::<u8>(), any_parent()).prop_map(|(k, p)| Call::Prepare(k, p)),
        2 => (any::<u8>(), any_parent()).prop_map(|(k, p)| Call::View(k, p)),
        4 => (any::<u8>(), any::<u8>(), any_parent()).prop_map(|(n, k, p)| Call::Commit(n, k, p)),
        3 => any::<u8>().prop_map(Call::Remove),
        1 => Just(Call::Cleanup),
        1 => Just(Call::Reopen),
    ];
    proptest::collection::vec(call, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn overlayfs_does_what_the_model_does(calls in calls()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check(calls));
    }
}

async fn check(calls: Vec<Call>) {
    let place = Place::new();
    let mut sn = place.overlay();
    let mut model = Model::default();
    for call in calls {
        let (want, got) = match call.clone() {
            Call::Prepare(key, parent) => {
                let (key, parent) = (name(key), parent.map(name));
                let got = sn.prepare(&key, parent.as_deref(), Labels::new()).await.map(drop);
                (model.create(Kind::Active, key, parent), got)
            }
            Call::View(key, parent) => {
                let (key, parent) = (name(key), parent.map(name));
                let got = sn.view(&key, parent.as_deref(), Labels::new()).await.map(drop);
                (model.create(Kind::View, key, parent), got)
            }
            Call::Commit(to, key, parent) => {
                let (to, key, parent) = (name(to), name(key), parent.map(name));
                let options = CommitOptions { parent: parent.clone(), ..CommitOptions::default() };
                let got = sn.commit(&to, &key, options).await;
                (model.commit(to, &key, parent), got)
            }
            Call::Remove(key) => (model.remove(&name(key)), sn.remove(&name(key)).await),
            Call::Cleanup => (Ok(()), sn.cleanup().await),
            Call::Reopen => {
                sn = place.overlay();
                (Ok(()), Ok(()))
            }
        };
        assert_eq!(got.map_err(|e| e.class()), want, "{call:?}");
        for (key, (kind, parent)) in &model.0 {
            let info = sn.stat(key).await.unwrap();
            assert_eq!((info.kind, &info.parent), (*kind, parent), "{key} after {call:?}");
        }
        assert_eq!(names(&sn).await, model.0.keys().cloned().collect::<Vec<_>>());
    }
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs().len(), model.dirs());
}
