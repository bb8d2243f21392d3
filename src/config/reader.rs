//! Takes a TOML tree apart, and collects every mistake on the way instead of stopping at the first.
//!
//! A [`Table`] hands out its keys one by one; what nobody took when it is finished is unknown. An [`Item`] knows its
//! key's path and its place, so a mistake is made where it is found. Reading functions answer `None` after they have
//! noted what is wrong. Whatever the key is, a mistake repeats a value only if it is shorter than any secret or like a
//! known word: a secret may stand in every place. Keys that are not known are values in this sense.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::OsString,
    fmt::{self, Display},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use toml::de::{DeTable, DeValue};

use super::{
    fingerprint::{self, Contents},
    look::Look,
    report::{Mistake, Place, quoted, short},
    units::{parse_duration, parse_size, show_duration, show_size},
};
use crate::files::{Content, Patience, ReadError};

/// What a file is read with: where mistakes are collected, and what the file is read against.
pub(super) struct Context<'c> {
    file: &'c Path,
    text: &'c str,
    /// What counts as now.
    pub(super) now: SystemTime,
    /// The environment's variables.
    pub(super) variable: &'c dyn Fn(&str) -> Option<OsString>,
    /// For reading the files that the file names.
    pub(super) patience: &'c Patience,
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
    files: RefCell<Vec<PathBuf>>,
    looks: RefCell<Vec<Look>>,
    contents: RefCell<Contents>,
    certificates: RefCell<BTreeMap<PathBuf, SystemTime>>,
}

/// What was collected while a file was read.
pub(super) struct Findings {
    /// What is wrong.
    pub(super) mistakes: Vec<Mistake>,
    /// What is to be warned of.
    pub(super) warnings: Vec<Mistake>,
    /// The files that the file names.
    pub(super) files: Vec<PathBuf>,
    /// How each of them looked before it was read.
    pub(super) looks: Vec<Look>,
    /// What was in those that were read.
    pub(super) contents: Contents,
    /// When the first certificate in each of them ends.
    pub(super) certificates: BTreeMap<PathBuf, SystemTime>,
}

impl<'c> Context<'c> {
    pub(super) fn new(
        file: &'c Path,
        text: &'c str,
        now: SystemTime,
        variable: &'c dyn Fn(&str) -> Option<OsString>,
        patience: &'c Patience,
    ) -> Self {
        let (mistakes, warnings, files, looks, contents, certificates) = Default::default();
        Self { file, text, now, variable, patience, mistakes, warnings, files, looks, contents, certificates }
    }

    /// Notes what is wrong at a byte offset.
    pub(super) fn mistake(&self, at: usize, key: &str, text: impl Display) {
        self.mistakes.borrow_mut().push(self.note(at, key, &text));
    }

    /// Notes what is to be warned of at a byte offset.
    pub(super) fn warning(&self, at: usize, key: &str, text: impl Display) {
        self.warnings.borrow_mut().push(self.note(at, key, &text));
    }

    fn note(&self, at: usize, key: &str, text: &dyn Display) -> Mistake {
        Mistake {
            file: self.file.to_owned(),
            place: Some(Place::of(self.text, at)),
            key: key.to_owned(),
            text: text.to_string(),
        }
    }

    /// The line of a byte offset.
    pub(super) fn line(&self, at: usize) -> usize {
        Place::of(self.text, at).line
    }

    /// How many mistakes were noted so far.
    pub(super) fn mistakes(&self) -> usize {
        self.mistakes.borrow().len()
    }

    /// Remembers a file that the configuration names. To be called before it is read.
    pub(super) fn name_file(&self, path: &Path) {
        let mut files = self.files.borrow_mut();
        if !files.iter().any(|known| known == path) {
            files.push(path.to_owned());
            self.looks.borrow_mut().push(Look::within(self.patience, path));
        }
    }

    /// Reads a file that was named.
    pub(super) fn read(&self, path: &Path, limit: usize) -> Result<Content, ReadError> {
        let read = self.patience.read(path, limit)?;
        self.contents.borrow_mut().insert(path.to_owned(), fingerprint::content(&read.bytes));
        Ok(read)
    }

    /// Remembers when the first certificate in a file ends.
    pub(super) fn certificates_end(&self, path: &Path, at: SystemTime) {
        self.certificates.borrow_mut().insert(path.to_owned(), at);
    }

    pub(super) fn finish(self) -> Findings {
        Findings {
            mistakes: self.mistakes.into_inner(),
            warnings: self.warnings.into_inner(),
            files: self.files.into_inner(),
            looks: self.looks.into_inner(),
            contents: self.contents.into_inner(),
            certificates: self.certificates.into_inner(),
        }
    }
}

/// A value with its key's path and its place.
pub(super) struct Item<'c> {
    pub(super) context: &'c Context<'c>,
    /// The path of its key.
    pub(super) key: String,
    /// Where it stands, as a byte offset.
    pub(super) at: usize,
    /// Where its key stands; for a member of a list, the member.
    pub(super) key_at: usize,
    pub(super) value: &'c DeValue<'c>,
}

impl<'c> Item<'c> {
    /// Notes that the value is wrong.
    pub(super) fn mistake(&self, text: impl Display) {
        self.context.mistake(self.at, &self.key, text);
    }

    /// Notes what is to be warned of.
    pub(super) fn warning(&self, text: impl Display) {
        self.context.warning(self.at, &self.key, text);
    }

    /// Notes that the value has another type than the wanted one. The value itself is not repeated.
    pub(super) fn wrong_type(&self, wanted: &str) {
        self.mistake(format_args!("is {}; it must be {wanted}", type_of(self.value)));
    }

    /// A string.
    pub(super) fn text(&self, wanted: &str) -> Option<&'c str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.wrong_type(wanted);
        }
        text
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Option<bool> {
        let flag = self.value.as_bool();
        if flag.is_none() {
            self.wrong_type("true or false, without quotes");
        }
        flag
    }

    /// A whole number within bounds.
    pub(super) fn count(&self, bounds: RangeInclusive<usize>) -> Option<usize> {
        let Some(number) = self.value.as_integer() else {
            self.wrong_type("a whole number, without quotes");
            return None;
        };
        let number = usize::from_str_radix(number.as_str(), number.radix()).ok();
        self.within(number, &bounds, usize::to_string)
    }

    /// A duration within bounds.
    pub(super) fn duration(&self, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        let text = match self.value {
            DeValue::String(text) => text,
            DeValue::Integer(number) => {
                self.mistake(match short(number.as_str()) {
                    Some(number) => {
                        format!("must be a duration with its unit: write \"{number}s\" for seconds")
                    }
                    None => "must be a duration with its unit: write e.g. \"10s\"".into(),
                });
                return None;
            }
            _ => {
                self.wrong_type("a duration such as \"10s\"");
                return None;
            }
        };
        let Some(duration) = parse_duration(text) else {
            let value = quoted(text);
            self.mistake(format_args!(
                "{value} is not a duration: write whole numbers with d, h, m, s or ms, such as \"10s\", \"250ms\" or \"1m30s\""
            ));
            return None;
        };
        self.within(Some(duration), &bounds, |duration| format!("\"{}\"", show_duration(*duration)))
    }

    /// A size in bytes within bounds.
    pub(super) fn size(&self, bounds: RangeInclusive<usize>) -> Option<usize> {
        let text = match self.value {
            DeValue::String(text) => text,
            DeValue::Integer(number) => {
                self.mistake(match short(number.as_str()) {
                    Some(number) => format!("must be a size with its unit: write \"{number}B\" for bytes"),
                    None => "must be a size with its unit: write e.g. \"1MiB\"".into(),
                });
                return None;
            }
            _ => {
                self.wrong_type("a size such as \"1MiB\"");
                return None;
            }
        };
        let Some(size) = parse_size(text) else {
            let value = quoted(text);
            self.mistake(format_args!(
                "{value} is not a size: write a whole number with B, KiB, MiB or GiB (KB, MB and GB are powers of 1000), such as \"1MiB\""
            ));
            return None;
        };
        self.within(usize::try_from(size).ok(), &bounds, |size| {
            format!("\"{}\"", u64::try_from(*size).map_or_else(|_| size.to_string(), show_size))
        })
    }

    /// `None` is a number too large to be held.
    fn within<T: PartialOrd>(
        &self,
        value: Option<T>,
        bounds: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        let fits = value.filter(|value| bounds.contains(value));
        if fits.is_none() {
            self.mistake(format_args!("must be from {} to {}", show(bounds.start()), show(bounds.end())));
        }
        fits
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let names = words.iter().map(|(name, _)| *name);
        let wanted = format!("one of \"{}\"", names.clone().collect::<Vec<_>>().join("\", \""));
        let text = self.text(&wanted)?;
        let found = words.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            self.mistake(format_args!("{} is not known here: write {wanted}", quoted(text)));
        }
        found.map(|(_, value)| *value)
    }

    /// The members of a list, which has at least one.
    pub(super) fn list(&self, wanted: &str) -> Option<Vec<Self>> {
        let Some(list) = self.value.as_array() else {
            self.wrong_type(wanted);
            return None;
        };
        if list.is_empty() {
            self.mistake(format_args!("is empty: it must be {wanted}"));
            return None;
        }
        let member = |value: &'c toml::Spanned<DeValue<'c>>| {
            let at = value.span().start;
            Item { context: self.context, key: self.key.clone(), at, key_at: at, value: value.get_ref() }
        };
        Some(list.iter().map(member).collect())
    }

    /// The strings of a list, each with its item; members that are not strings are mistakes.
    pub(super) fn texts(&self, example: &str) -> Option<Vec<(Self, &'c str)>> {
        if let Some(text) = self.value.as_str() {
            let text = short(text).unwrap_or("…");
            self.mistake(format_args!("must be a list: write [\"{text}\"]"));
            return None;
        }
        let list = self.list(&format!("a list of strings such as {example}"))?;
        let texts = list.into_iter().map(|item| item.text("a string in quotes").map(|text| (item, text)));
        texts.collect::<Vec<_>>().into_iter().collect()
    }

    /// A table.
    pub(super) fn table(self, wanted: &str) -> Option<Table<'c>> {
        let table = self.value.as_table();
        if table.is_none() {
            self.wrong_type(wanted);
        }
        table.map(|entries| Table {
            context: self.context,
            key: self.key,
            at: self.at,
            entries,
            known: Vec::new(),
            misplaced: Vec::new(),
        })
    }
}

/// A table, some of whose keys were taken.
pub(super) struct Table<'c> {
    pub(super) context: &'c Context<'c>,
    /// The path of its key; empty for the file itself.
    pub(super) key: String,
    /// Where it stands, as a byte offset.
    pub(super) at: usize,
    entries: &'c DeTable<'c>,
    /// What was taken.
    known: Vec<&'static str>,
    /// What was found to be wrong to have, and is not to be suggested.
    misplaced: Vec<&'static str>,
}

impl<'c> Table<'c> {
    /// The file itself.
    pub(super) fn root(context: &'c Context<'c>, entries: &'c DeTable<'c>) -> Self {
        Self { context, key: String::new(), at: 0, entries, known: Vec::new(), misplaced: Vec::new() }
    }

    /// Takes a key.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Item<'c>> {
        self.known.push(name);
        self.find(name)
    }

    /// Takes a key that must be there; `fix` says what to write.
    pub(super) fn require(&mut self, name: &'static str, fix: impl Display) -> Option<Item<'c>> {
        let item = self.take(name);
        if item.is_none() {
            self.context.mistake(self.at, &self.path(name), format_args!("is missing: {fix}"));
        }
        item
    }

    /// Takes a key and reads it; the default holds where it is absent or wrong.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl FnOnce(&Item<'c>) -> Option<T>,
    ) -> T {
        self.take(name).and_then(|item| read(&item)).unwrap_or(default)
    }

    /// Refuses a key that has no place here; `why` says so, and what to do.
    pub(super) fn refuse(&mut self, name: &'static str, why: &str) {
        self.misplaced.push(name);
        if let Some(item) = self.find(name) {
            self.context.mistake(item.key_at, &item.key, why);
        }
    }

    /// A key, taken or not.
    pub(super) fn find(&self, name: &str) -> Option<Item<'c>> {
        let (key, value) = self.entries.get_key_value(name)?;
        Some(self.item(key.span().start, name, value))
    }

    /// Its keys with their values, as the file has them.
    pub(super) const fn entries(&self) -> &'c DeTable<'c> {
        self.entries
    }

    /// All keys of a table whose keys are the operator's, in the order of the file.
    pub(super) fn items(&self) -> Vec<(&'c str, Item<'c>)> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let item = |(key, value): (&'c toml::Spanned<std::borrow::Cow<'c, str>>, _)| {
            let name: &'c str = key.get_ref();
            (name, self.item(key.span().start, name, value))
        };
        entries.into_iter().map(item).collect()
    }

    fn item(&self, key_at: usize, name: &str, value: &'c toml::Spanned<DeValue<'c>>) -> Item<'c> {
        let at = value.span().start;
        Item { context: self.context, key: self.path(name), at, key_at, value: value.get_ref() }
    }

    /// The path of one of its keys.
    pub(super) fn path(&self, name: &str) -> String {
        if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) }
    }

    /// Notes that the table as a whole is wrong.
    pub(super) fn mistake(&self, text: impl Display) {
        self.context.mistake(self.at, &self.key, text);
    }

    /// Notes every key that nobody took.
    pub(super) fn finish(self) {
        for (name, item) in self.items() {
            if !self.known.contains(&name) && !self.misplaced.contains(&name) {
                let known = Known { name, known: &self.known };
                // What is unlike any key, and as long as a secret, may be one.
                let is_like = |known: &str| name.len() <= known.len() + MISSPELT;
                let shown =
                    if short(name).is_some() || known.similar().is_some_and(is_like) { name } else { "…" };
                let key = self.path(shown);
                self.context.mistake(item.key_at, &key, format_args!("is not a known key; {known}"));
            }
        }
    }
}

/// What might have been meant instead of an unknown key.
struct Known<'k> {
    name: &'k str,
    known: &'k [&'static str],
}

impl Known<'_> {
    fn similar(&self) -> Option<&str> {
        nearest(self.name, self.known.iter().copied())
    }
}

impl Display for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.similar() {
            Some(similar) => write!(f, "did you mean `{similar}`?"),
            None => write!(f, "known here: {}", self.known.join(", ")),
        }
    }
}

/// By how much a misspelt word may be longer than the known one to be repeated whatever its length.
pub(super) const MISSPELT: usize = 4;

/// How unlike a known word may be to be suggested: 0 is unlike, 1 is equal.
const SIMILAR: f64 = 0.75;

/// The known word that is most like a misspelt one.
pub(super) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let name = name.to_ascii_lowercase();
    known
        .map(|word| {
            (strsim::jaro_winkler(word, &name).max(strsim::normalized_damerau_levenshtein(word, &name)), word)
        })
        .filter(|(likeness, _)| *likeness >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

/// The type of a value, with its article.
fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
