//! Which source file imports which: read from the code with `syn`, so that groups, `super::` and paths in the middle of an
//! expression count as well. Tests are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use syn::{
    Attribute, Item, ItemMod, UseTree,
    visit::{self, Visit},
};

/// Files by their paths below `src` without `.rs`, such as `delivery/queue`, each with those that it imports.
pub(crate) type Imports = BTreeMap<String, BTreeSet<String>>;

/// The imports of a tree of files, which are given by their paths below `src` with their source.
pub(crate) fn of<'s>(files: impl IntoIterator<Item = (&'s str, &'s str)>) -> Imports {
    let files: BTreeMap<String, &str> = files
        .into_iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, source)| (path.trim_end_matches(".rs").to_owned(), source))
        .collect();
    let known: BTreeSet<&str> = files.keys().map(String::as_str).collect();
    files
        .iter()
        .map(|(file, source)| {
            let mut finder = Finder { file, known: &known, found: BTreeSet::new() };
            finder.visit_file(&syn::parse_file(source).unwrap());
            finder.found.remove(file);
            (file.clone(), finder.found)
        })
        .collect()
}

fn is_test(path: &str) -> bool {
    Path::new(path).components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

/// Everything that a file reaches, over any number of others.
pub(crate) fn reached<'i>(imports: &'i Imports, from: &str) -> BTreeSet<&'i str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = vec![from];
    while let Some(file) = next.pop() {
        for import in imports.get(file).into_iter().flatten() {
            if reached.insert(import.as_str()) {
                next.push(import);
            }
        }
    }
    reached
}

/// The files that reach themselves. That a file names its own rooms is no way to them: it is their door.
pub(crate) fn in_circles(imports: &Imports) -> Vec<String> {
    let downwards = |from: &str, to: &str| to.starts_with(&format!("{from}/"));
    let ways: Imports = imports
        .iter()
        .map(|(from, all)| (from.clone(), all.iter().filter(|to| !downwards(from, to)).cloned().collect()))
        .collect();
    ways.keys().filter(|file| reached(&ways, file).contains(file.as_str())).cloned().collect()
}

struct Finder<'f> {
    file: &'f str,
    known: &'f BTreeSet<&'f str>,
    found: BTreeSet<String>,
}

impl Finder<'_> {
    /// Notes the file in which the thing with this path stands, if it is one of ours.
    fn note(&mut self, path: &[String]) {
        let mut at: Vec<&str> = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.file.split('/').collect(),
            // A room of this file, by its name alone.
            Some(first) if self.known.contains(format!("{}/{first}", self.file).as_str()) => {
                self.file.split('/').collect()
            }
            _ => return,
        };
        for segment in path {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => drop(at.pop()),
                name => at.push(name),
            }
        }
        // The longest beginning that is a file. The rest is within it.
        while !at.is_empty() {
            let file = at.join("/");
            if self.known.contains(file.as_str()) {
                self.found.insert(file);
                return;
            }
            at.pop();
        }
    }

    fn note_tree(&mut self, before: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_tree(before, &path.tree);
                before.pop();
            }
            UseTree::Name(name) => self.note_leaf(before, &name.ident.to_string()),
            UseTree::Rename(name) => self.note_leaf(before, &name.ident.to_string()),
            UseTree::Glob(_) => self.note(before),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.note_tree(before, tree);
                }
            }
        }
    }

    fn note_leaf(&mut self, before: &[String], name: &str) {
        let mut whole = before.to_vec();
        if name != "self" {
            whole.push(name.to_owned());
        }
        self.note(&whole);
    }
}

/// Whether an item is there in tests only.
fn of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

impl<'a> Visit<'a> for Finder<'_> {
    fn visit_item(&mut self, item: &'a Item) {
        match item {
            Item::Mod(ItemMod { attrs, .. }) if of_tests(attrs) => {}
            Item::Use(used) if !of_tests(&used.attrs) => self.note_tree(&mut Vec::new(), &used.tree),
            Item::Use(_) => {}
            other => visit::visit_item(self, other),
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.note(&segments);
        }
        visit::visit_path(self, path);
    }
}
