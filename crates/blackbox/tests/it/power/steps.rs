//! What the machine does, and what must be there after each step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use gantry_testkit::{Compression, Image, Layer};

/// Files of the image whose layer is synced as a whole.
const MANY_FILES: usize = 300;

/// One command of the machine, or two at once.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Imports these images, all at once.
    Import(Vec<usize>),
    /// Removes an image's record; waits for the garbage collector when true.
    Remove(usize, bool),
    /// Creates a container of the image and does not start it.
    Create(String, usize),
    /// Sets the label `step` of a container.
    Label(String, String),
    /// Removes a container and its snapshot.
    Delete(String),
    /// Runs a container of the image from creation to deletion.
    Run(String, usize),
    /// Makes a lease.
    Lease(String),
    /// Removes a lease.
    Unlease(String),
    /// Kills the daemon and starts it again.
    Kill,
}

/// What is there.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Images, by number.
    pub images: BTreeSet<usize>,
    /// Containers: their image and their label `step`.
    pub containers: BTreeMap<String, (usize, Option<String>)>,
    /// Leases.
    pub leases: BTreeSet<String>,
}

/// The steps of a machine, chosen by a seed.
#[derive(Debug)]
pub(super) struct Steps {
    images: Vec<Image>,
    steps: Vec<Step>,
}

impl Steps {
    /// `count` steps.
    pub(super) fn choose(seed: u64, count: usize) -> Self {
        let images = images();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut state = State::default();
        let mut steps = Vec::new();
        while steps.len() < count {
            if let Some(step) = random_step(&mut random, &state, images.len(), steps.len()) {
                state.apply(&step);
                steps.push(step);
            }
        }
        Self { images, steps }
    }

    /// The images; the machine has them as archives `/images/<number>.tar`.
    pub(super) fn images(&self) -> &[Image] {
        &self.images
    }

    /// The name of an image.
    pub(super) fn name(image: usize) -> String {
        format!("docker.io/library/power:{image}")
    }

    /// Number of steps.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// The step after the first `n`.
    pub(super) fn get(&self, n: usize) -> Option<&Step> {
        self.steps.get(n)
    }

    /// Whether a step runs container `id` from creation to deletion.
    pub(super) fn runs(&self, id: &str) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Run(run, _) if run == id))
    }

    /// What is there after the first `n` steps.
    pub(super) fn state(&self, n: usize) -> State {
        let mut state = State::default();
        self.steps[..n].iter().for_each(|step| state.apply(step));
        state
    }

    /// The machine's script: every step, and a mark when it is done.
    pub(super) fn script(&self) -> String {
        let mut script = String::new();
        for (n, step) in self.steps.iter().enumerate() {
            let number = n + 1;
            writeln!(script, "{} || fail \"step {number}\"\nmark {number}", step.command())
                .unwrap();
        }
        script
    }
}

impl Step {
    fn command(&self) -> String {
        match self {
            Self::Import(images) => {
                let all = images.iter().fold(String::new(), |mut all, n| {
                    write!(all, "$CTR images import /images/{n}.tar >/dev/null & p{n}=$!; ")
                        .unwrap();
                    all
                });
                let waits: Vec<_> = images.iter().map(|n| format!("wait $p{n}")).collect();
                format!("{all}{}", waits.join(" && "))
            }
            Self::Remove(n, sync) => {
                let flag = if *sync { "--sync " } else { "" };
                format!("$CTR images rm {flag}{}", Steps::name(*n))
            }
            Self::Create(id, n) => format!("$CTR containers create {} {id}", Steps::name(*n)),
            Self::Label(id, text) => format!("$CTR containers label {id} step={text}"),
            Self::Delete(id) => format!("$CTR containers delete {id}"),
            Self::Run(id, n) => {
                let inside = "sh -c 'echo data >/file; mkdir -p /d/e; rm /bin/true'";
                format!("$CTR run --rm {} {id} {inside}", Steps::name(*n))
            }
            Self::Lease(id) => format!("$CTR leases create --id {id}"),
            Self::Unlease(id) => format!("$CTR leases delete {id}"),
            Self::Kill => "kill -9 $daemon; wait $daemon; start".to_owned(),
        }
    }
}

impl State {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Import(images) => self.images.extend(images),
            Step::Remove(n, _) => drop(self.images.remove(n)),
            Step::Create(id, n) => drop(self.containers.insert(id.clone(), (*n, None))),
            Step::Label(id, text) => {
                self.containers.get_mut(id).unwrap().1 = Some(text.clone());
            }
            Step::Delete(id) => drop(self.containers.remove(id)),
            Step::Lease(id) => drop(self.leases.insert(id.clone())),
            Step::Unlease(id) => drop(self.leases.remove(id)),
            Step::Run(..) | Step::Kill => {}
        }
    }
}

/// A step that makes sense now; none when the dice fell on one that does not.
fn random_step(
    random: &mut fastrand::Rng,
    state: &State,
    images: usize,
    number: usize,
) -> Option<Step> {
    let present: Vec<usize> = state.images.iter().copied().collect();
    let containers: Vec<&String> = state.containers.keys().collect();
    let leases: Vec<&String> = state.leases.iter().collect();
    let id = format!("c{number}");
    match random.u8(0..20) {
        0..5 => {
            let mut missing: Vec<usize> = (0..images).filter(|n| !present.contains(n)).collect();
            random.shuffle(&mut missing);
            missing.truncate(random.usize(1..=2));
            (!missing.is_empty()).then_some(Step::Import(missing))
        }
        5..8 => Some(Step::Remove(random.choice(present)?, random.bool())),
        8..12 => Some(Step::Create(id, random.choice(present)?)),
        12..14 => Some(Step::Label(random.choice(containers)?.clone(), id)),
        14..16 => Some(Step::Delete(random.choice(containers)?.clone())),
        16 | 17 => Some(Step::Run(id, random.choice(present)?)),
        18 if random.bool() => Some(Step::Unlease(random.choice(leases)?.clone())),
        18 => Some(Step::Lease(format!("l{number}"))),
        _ => random.choice(present).map(|_| Step::Kill),
    }
}

/// Images that share layers, in several compressions, with big files, many files, whiteouts, links
/// and devices.
fn images() -> Vec<Image> {
    let odd = Layer::new()
        .dir("odd", 0o2755)
        .owned_by(1000, 2000)
        .file("odd/empty", 0o4711, "")
        .hardlink("odd/linked", "bin/busybox")
        .symlink("odd/dangling", "/nowhere")
        .fifo("odd/fifo")
        .char_device("odd/null", 1, 3)
        .whiteout("bin/yes")
        .opaque("home");
    let many = (0..MANY_FILES).fold(Layer::new().dir("many", 0o755), |layer, n| {
        layer.file(&format!("many/{n}"), 0o644, vec![(n % 251) as u8 + 1; 100 + n * 17])
    });
    vec![
        Image::builder().layers(3).build(),
        Image::builder().layers(3).big_layer(2 << 20, 1).build(),
        Image::builder().compression(Compression::Zstd).layer(odd).build(),
        Image::builder().compression(Compression::None).layer(many).layers(3).build(),
    ]
}
