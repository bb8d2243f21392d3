//! Whether the time of the signature check depends on what it must not depend on, measured.
//!
//! The method is dudect's (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?", 2017): two classes of
//! inputs in random order, one timing for each sample, Welch's t-test between the classes, once over all samples and
//! once for each of several bounds above which samples are left out, since interruptions hide small differences.
//! The largest |t| is printed. Below 4.5 no difference was seen; far above it there is one, and it grows with the root
//! of the number of samples.
//!
//! `cargo bench --bench constant_time`, or with more samples `cargo bench --bench constant_time -- --samples 10000000`.
//! The last rows are the same check written with `==`, which shows that a leak is seen. The exit status is 1 if a row
//! of the verifier leaks, or if one of `==` does not.

#![expect(
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a program for people at their own machine, which measures real time"
)]

use std::{
    hint::black_box,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hookgate::webhook::{
    event::Event,
    secret::Secret,
    signature::{Comparison, Key, Signature, Verifier, sign},
};

/// What dudect takes for a difference.
const LIMIT: f64 = 4.5;

fn main() {
    let samples = samples();
    let bench = Bench::new();
    println!("{samples} samples a row; |t| below {LIMIT}: no difference seen\n");
    println!("{:<34} {:<46} {:>8} {:>8}  {:>9}", "the check", "classes", "mean ns", "apart ns", "max |t|");
    let mut failed = false;
    for (checked, leaks) in
        [("Verifier::compare, three secrets", false), ("== on hex, secret after secret", true)]
    {
        for (classes, left, right) in [
            ("wrong in the first bit / in the last", Case::Early, Case::Late),
            ("wrong in every byte / in the last bit", Case::Random, Case::Late),
            ("signed by the first secret / by the third", Case::Secret(0), Case::Secret(2)),
            ("right (second secret) / wrong in the last bit", Case::Secret(1), Case::Late),
        ] {
            let row = if leaks {
                bench.measure(Bench::equals, left, right, samples)
            } else {
                bench.measure(Bench::verifier, left, right, samples)
            };
            let wrong = (row.t > LIMIT) != leaks;
            failed |= wrong;
            let verdict = if wrong { "  <- not as it has to be" } else { "" };
            println!(
                "{checked:<34} {classes:<46} {:>8.1} {:>8.2}  {:>9.2}{verdict}",
                row.mean, row.apart, row.t
            );
        }
    }
    if failed {
        std::process::exit(1);
    }
}

/// The number after `--samples`.
fn samples() -> u64 {
    let arguments: Vec<_> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == "--samples");
    at.map_or(1_000_000, |at| arguments[at + 1].parse().unwrap())
}

/// What a signature is like.
#[derive(Clone, Copy)]
enum Case {
    /// That of this secret.
    Secret(usize),
    /// The third secret's, but for its first bit.
    Early,
    /// The third secret's, but for its last bit.
    Late,
    /// Nothing of it fits.
    Random,
}

struct Bench {
    verifier: Verifier,
    secrets: Vec<Secret>,
    now: SystemTime,
}

struct Sample {
    body: Bytes,
    signature: Signature,
    hex: String,
}

impl Bench {
    fn new() -> Self {
        let secrets: Vec<_> =
            ["the first of the secrets", "the second of the secrets", "the third of the secrets"]
                .map(|text| Secret::try_new(text.into(), false).unwrap())
                .into();
        let keys = secrets.iter().map(|secret| Key::new("bench".into(), secret, None)).collect();
        Self { verifier: Verifier::new(keys), secrets, now: UNIX_EPOCH }
    }

    /// hookgate's own check, up to the point where its outcome is looked at: that is what the answer tells.
    fn verifier(&self, sample: &Sample) -> Comparison {
        self.verifier.compare(&sample.body, &sample.signature, self.now)
    }

    /// What one would write without thinking of time.
    fn equals(&self, sample: &Sample) -> bool {
        self.secrets.iter().any(|secret| sign(secret, &sample.body) == sample.hex)
    }

    /// Bodies that differ, each with a signature of this case.
    fn samples(&self, case: Case) -> Vec<Sample> {
        let body = Event::find("environment_revision_created").unwrap().sample_body();
        let make = |number: usize| {
            let body = body.replace("\"revision\":5", &format!("\"revision\":{number}"));
            let right = |which: usize| hex::decode(sign(&self.secrets[which], body.as_bytes())).unwrap();
            let mut tag = right(2);
            match case {
                Case::Secret(which) => tag = right(which),
                Case::Early => tag[0] ^= 0x80,
                Case::Late => tag[31] ^= 0x01,
                Case::Random => tag.iter_mut().for_each(|byte| *byte = !*byte),
            }
            let hex = hex::encode(tag);
            Sample { body: body.into(), signature: Signature::parse(hex.as_bytes()).unwrap(), hex }
        };
        (100..164).map(make).collect()
    }

    fn measure<T>(&self, check: fn(&Self, &Sample) -> T, left: Case, right: Case, samples: u64) -> Row {
        let classes = [self.samples(left), self.samples(right)];
        let mut random = fastrand::Rng::with_seed(7);
        let mut one = || {
            let class = usize::from(random.bool());
            // Copied, so that neither class lies nearer.
            let Sample { body, signature, hex } = &classes[class][random.usize(..64)];
            let sample = Sample { body: body.clone(), signature: *signature, hex: hex.clone() };
            let start = Instant::now();
            let outcome = black_box(check(self, black_box(&sample)));
            let duration = start.elapsed();
            black_box(outcome);
            (class, f64::from(u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)))
        };
        let mut first: Vec<f64> = (0..20_000).map(|_| one().1).collect();
        first.sort_by(f64::total_cmp);
        let bounds: Vec<f64> = std::iter::once(f64::INFINITY)
            .chain((1..=20).map(|step| {
                // Denser towards the fast end, as in dudect.
                let part = 1.0 - 0.5_f64.powf(f64::from(step) / 4.0);
                let place = part * 19_999.0;
                first.iter().copied().zip(0_u32..).find(|(_, at)| f64::from(*at) >= place).unwrap().0
            }))
            .collect();
        let mut tests = vec![[Moments::default(); 2]; bounds.len()];
        for _ in 0..samples {
            let (class, time) = one();
            for (test, bound) in tests.iter_mut().zip(&bounds) {
                if time <= *bound {
                    test[class].push(time);
                }
            }
        }
        // A test over few samples says nothing.
        let told = tests.iter().filter(|[a, b]| a.count.min(b.count) > 5_000.0);
        let t = told.map(|[a, b]| a.t(b).abs()).fold(0.0, f64::max);
        // Without the slowest quarter, which is the machine's.
        let [a, b] = tests[8];
        Row { mean: a.mean, apart: b.mean - a.mean, t }
    }
}

struct Row {
    mean: f64,
    apart: f64,
    t: f64,
}

/// Mean and variance of what came so far (Welford).
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn push(&mut self, value: f64) {
        self.count += 1.0;
        let off = value - self.mean;
        self.mean += off / self.count;
        self.squares += off * (value - self.mean);
    }

    /// Welch's t of two classes.
    fn t(&self, other: &Self) -> f64 {
        let part = |moments: &Self| moments.squares / (moments.count - 1.0) / moments.count;
        let spread = part(self) + part(other);
        if spread == 0.0 { 0.0 } else { (self.mean - other.mean) / spread.sqrt() }
    }
}
