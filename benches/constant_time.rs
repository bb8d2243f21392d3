//! Whether the time of the signature check depends on what it must not depend on, measured.
//!
//! The method is dudect's (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?", 2017): two classes of
//! inputs in random order, one timing for each sample, Welch's t-test between the classes, once over all samples and
//! once for each of several bounds above which samples are left out, since interruptions hide small differences.
//! The largest |t| is printed. Below 4.5 no difference was seen; far above it there is one, and it grows with the root
//! of the number of samples.
//!
//! What is measured is the verifier up to the point where its outcome is looked at: the answer tells the outcome anyway.
//! Both classes are measured over the same bodies, copied to the same place, and a batch is prepared before any of it is
//! measured: alignment, caches and what the processor has under way would otherwise make up for a tenth of a nanosecond,
//! which ten million samples show. A row of twice the same class tells what is left of that. It is a machine with other
//! work on it, all the same: a single |t| a little above the limit that does not come again says nothing, one that does
//! is a leak.
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
    for (checked, check, leaks) in [
        ("Verifier::compare, three secrets", Check::Verifier, false),
        ("== on hex, secret after secret", Check::Equals, true),
    ] {
        for (classes, left, right) in [
            ("wrong in the first bit / in the last", Case::Early, Case::Late),
            ("wrong in every byte / in the last bit", Case::Random, Case::Late),
            ("signed by the first secret / by the third", Case::Secret(0), Case::Secret(2)),
            ("right (second secret) / wrong in the last bit", Case::Secret(1), Case::Late),
            ("right (third secret) / wrong in the first bit", Case::Secret(2), Case::Early),
            ("twice the same, which shows the noise", Case::Late, Case::Late),
        ] {
            let leaks = leaks && !matches!((left, right), (Case::Late, Case::Late));
            let row = match check {
                Check::Verifier => bench.measure(Bench::verifier, left, right, samples),
                Check::Equals => bench.measure(Bench::equals, left, right, samples),
            };
            let wrong = (row.t > LIMIT) != leaks;
            failed |= wrong;
            let verdict = if wrong { "  <- not as it must be" } else { "" };
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

/// What is measured.
#[derive(Clone, Copy)]
enum Check {
    Verifier,
    Equals,
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

/// Samples that are prepared together.
const BATCH: usize = 512;

struct Bench {
    verifier: Verifier,
    secrets: Vec<Secret>,
    now: SystemTime,
}

/// What is checked. It always lies at the same place, whichever class it is of: where something lies shows in the time.
struct Sample {
    body: Vec<u8>,
    signature: Signature,
    hex: [u8; 64],
}

/// A body with a signature of each class, side by side.
struct Pair {
    body: String,
    signatures: [Signature; 2],
    hex: [[u8; 64]; 2],
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
        self.secrets.iter().any(|secret| sign(secret, &sample.body).as_bytes() == sample.hex)
    }

    /// Bodies that differ, each with a signature of each case.
    fn pairs(&self, cases: [Case; 2]) -> Vec<Pair> {
        let body = Event::find("environment_revision_created").unwrap().sample_body();
        let make = |number: usize| {
            let body = body.replace("\"revision\":5", &format!("\"revision\":{number}"));
            let hex = cases.map(|case| self.hex(case, &body));
            Pair { body, signatures: hex.map(|hex| Signature::parse(&hex).unwrap()), hex }
        };
        (100..164).map(make).collect()
    }

    fn hex(&self, case: Case, body: &str) -> [u8; 64] {
        let right = |which: usize| hex::decode(sign(&self.secrets[which], body.as_bytes())).unwrap();
        let mut tag = right(2);
        match case {
            Case::Secret(which) => tag = right(which),
            Case::Early => tag[0] ^= 0x80,
            Case::Late => tag[31] ^= 0x01,
            Case::Random => tag.iter_mut().for_each(|byte| *byte = !*byte),
        }
        hex::encode(tag).into_bytes().try_into().unwrap()
    }

    fn measure<T>(&self, check: fn(&Self, &Sample) -> T, left: Case, right: Case, samples: u64) -> Row {
        let pairs = self.pairs([left, right]);
        let mut random = fastrand::Rng::new();
        let mut sample = Sample { body: Vec::new(), signature: pairs[0].signatures[0], hex: pairs[0].hex[0] };
        let other = Sample { body: pairs[0].body.clone().into_bytes(), ..sample };
        let mut batch = || {
            // What is of which class is settled before the first of them is measured, and is counted after the last:
            // the place where anything lies and what was touched before say nothing of the class.
            let mut slots = [(0, 0, sample.signature, sample.hex, 0.0); BATCH];
            for slot in &mut slots {
                let (class, number) = (usize::from(random.bool()), random.usize(..64));
                *slot = (class, number, pairs[number].signatures[class], pairs[number].hex[class], 0.0);
            }
            for (_, number, signature, hex, time) in &mut slots {
                sample.body.clear();
                sample.body.extend_from_slice(pairs[*number].body.as_bytes());
                (sample.signature, sample.hex) = (*signature, *hex);
                // The same for each sample, so that the processor comes from the same work.
                black_box(check(self, black_box(&other)));
                let start = Instant::now();
                let outcome = black_box(check(self, black_box(&sample)));
                let duration = start.elapsed();
                black_box(outcome);
                *time = f64::from(u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX));
            }
            slots.map(|(class, _, _, _, time)| (class, time))
        };
        let mut first: Vec<f64> = (0..40).flat_map(|_| batch()).map(|(_, time)| time).collect();
        first.sort_by(f64::total_cmp);
        let bounds: Vec<f64> = std::iter::once(f64::INFINITY)
            .chain((1..=20).map(|step| {
                // Denser towards the fast end, as in dudect.
                let part = 1.0 - 0.5_f64.powf(f64::from(step) / 4.0);
                let place = part * 20_479.0;
                first.iter().copied().zip(0_u32..).find(|(_, at)| f64::from(*at) >= place).unwrap().0
            }))
            .collect();
        let mut tests = vec![[Moments::default(); 2]; bounds.len()];
        let mut missing = samples;
        while missing > 0 {
            for (class, time) in batch() {
                for (test, bound) in tests.iter_mut().zip(&bounds) {
                    if time <= *bound {
                        test[class].push(time);
                    }
                }
                missing = missing.saturating_sub(1);
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
