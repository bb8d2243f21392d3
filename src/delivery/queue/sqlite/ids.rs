//! Which deliveries came under an ID: the index of IDs, of which the newest part is in memory.
//!
//! IDs are random: in a large index nearly each of them lies on a page of its own, and a commit would write as many pages as
//! it takes in deliveries. So the newest are kept here, and go into the file in the order of its index, many at a time, so
//! that a page is written once for all that it takes in. The file says up to which delivery its index is complete
//! ([`INDEXED`]); what came later is read again at the start, and looked through by whoever works beside the service.
//!
//! Most IDs are new. A filter of a fixed size says so of nearly all of them without a look into the file.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::rows::hash_of;

/// The counter of deliveries that are in the file's index.
const INDEXED: &str = "indexed";

/// IDs that are kept here before they begin to go into the file.
const NEWEST: usize = 64 << 10;

/// How many go into the file at once, each time half as many have come.
const SLICE: usize = 512;

/// The hash of an ID, and the number of its delivery.
type Entry = (i64, i64);

/// The index. What a transaction does to it is confirmed or undone with it.
pub(super) struct Ids {
    newest: BTreeSet<Entry>,
    /// Older ones, on their way into the file, and the highest number of theirs.
    leaving: BTreeSet<Entry>,
    highest: i64,
    filter: Filter,
    /// How many have come since some went into the file.
    come: usize,
    /// What the transaction under way has added, put into the file, and removed.
    added: Vec<Entry>,
    filed: Vec<Entry>,
    removed: Vec<Entry>,
}

impl Ids {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self {
            newest: BTreeSet::new(),
            leaving: BTreeSet::new(),
            highest: 0,
            filter: Filter::new(),
            come: 0,
            added: Vec::new(),
            filed: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Reads what is in the file.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut this = Self::new();
        let mut indexed = connection.prepare("SELECT hash FROM by_id")?;
        let mut rows = indexed.query([])?;
        while let Some(row) = rows.next()? {
            this.filter.add(row.get(0)?);
        }
        let mut later = connection.prepare(
            "SELECT number, id FROM delivery
             WHERE number > coalesce((SELECT value FROM counter WHERE name = ?1), 0)",
        )?;
        let mut rows = later.query([INDEXED])?;
        while let Some(row) = rows.next()? {
            this.add(hash_of(row.get_ref(1)?.as_str()?), row.get(0)?);
        }
        this.commit();
        Ok(this)
    }

    /// The deliveries that may have come under an ID of this hash, the newest first. Some may be gone.
    pub(super) fn find(&self, connection: &Connection, hash: i64) -> rusqlite::Result<Vec<i64>> {
        if !self.filter.may_have(hash) {
            return Ok(Vec::new());
        }
        let mut found: Vec<i64> = connection
            .prepare_cached("SELECT number FROM by_id WHERE hash = ?1")?
            .query_map([hash], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for entries in [&self.leaving, &self.newest] {
            found.extend(entries.range((hash, i64::MIN)..=(hash, i64::MAX)).map(|(_, number)| number));
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    }

    pub(super) fn add(&mut self, hash: i64, number: i64) {
        self.newest.insert((hash, number));
        self.filter.add(hash);
        self.added.push((hash, number));
    }

    /// For a delivery that is gone from the file.
    pub(super) fn remove(&mut self, hash: i64, number: i64) {
        self.removed.push((hash, number));
    }

    /// Puts some of them into the file, if it is time to.
    pub(super) fn file(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.leaving.is_empty() && self.newest.len() >= NEWEST {
            self.leaving = std::mem::take(&mut self.newest);
            self.highest = self.leaving.iter().map(|(_, number)| *number).max().unwrap_or(0);
        }
        if self.come < SLICE / 2 || self.leaving.is_empty() {
            return Ok(());
        }
        let mut insert =
            connection.prepare_cached("INSERT OR IGNORE INTO by_id (hash, number) VALUES (?1, ?2)")?;
        for entry in self.leaving.iter().take(SLICE) {
            if !self.removed.contains(entry) {
                insert.execute([entry.0, entry.1])?;
            }
            self.filed.push(*entry);
        }
        if self.filed.len() == self.leaving.len() {
            connection
                .prepare_cached("INSERT OR REPLACE INTO counter (name, value) VALUES (?1, ?2)")?
                .execute(params![INDEXED, self.highest])?;
        }
        Ok(())
    }

    /// The transaction is committed.
    pub(super) fn commit(&mut self) {
        self.come += self.added.len();
        self.added.clear();
        if !self.filed.is_empty() {
            self.come = 0;
        }
        for entry in self.filed.drain(..) {
            self.leaving.remove(&entry);
        }
        for entry in self.removed.drain(..) {
            self.filter.remove(entry.0);
            self.newest.remove(&entry);
            self.leaving.remove(&entry);
        }
    }

    /// The transaction came to nothing.
    pub(super) fn roll_back(&mut self) {
        for entry in self.added.drain(..) {
            self.filter.remove(entry.0);
            self.newest.remove(&entry);
            self.leaving.remove(&entry);
        }
        self.filed.clear();
        self.removed.clear();
    }
}

/// What is not in here is not in the index: a Bloom filter that counts, so that what is gone can be taken out again.
struct Filter(Vec<u8>);

impl Filter {
    /// Counts, two in a byte. With a million IDs, 19 of 20 new ones need no look into the file.
    const PLACES: usize = 8 << 20;

    /// A count that has come to this stays.
    const MOST: u8 = 15;

    fn new() -> Self {
        Self(vec![0; Self::PLACES / 2])
    }

    fn places(hash: i64) -> [usize; 2] {
        let place = |hash: i64| usize::try_from(hash).unwrap_or(0) % Self::PLACES;
        // The first one depends on the low bits of the hash, and the second on all of them.
        [place(hash), place((hash.wrapping_mul(0x9e37_79b1) >> 16) & i64::from(u32::MAX))]
    }

    fn count(&mut self, hash: i64, change: impl Fn(u8) -> u8) {
        for place in Self::places(hash) {
            if let Some(pair) = self.0.get_mut(place / 2) {
                let shift = 4 * (place % 2);
                let count = (*pair >> shift) & Self::MOST;
                *pair = (*pair & !(Self::MOST << shift)) | (change(count) << shift);
            }
        }
    }

    fn add(&mut self, hash: i64) {
        self.count(hash, |count| Self::MOST.min(count + 1));
    }

    fn remove(&mut self, hash: i64) {
        self.count(hash, |count| if count == Self::MOST { count } else { count.saturating_sub(1) });
    }

    fn may_have(&self, hash: i64) -> bool {
        Self::places(hash).into_iter().all(|place| {
            self.0.get(place / 2).is_none_or(|pair| (pair >> (4 * (place % 2))) & Self::MOST > 0)
        })
    }
}
