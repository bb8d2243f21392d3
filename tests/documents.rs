//! What holds of the documents: links lead somewhere, pages say for whom they are, and blocks can be pasted.

#![expect(clippy::unwrap_used, reason = "a test may fail by a panic, in its helpers too")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A document: its path in the repository, and its text.
type Document = (PathBuf, String);

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of the site.
fn pages() -> Vec<Document> {
    let mut paths: Vec<_> =
        fs::read_dir(top().join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    let pages: Vec<_> = paths
        .into_iter()
        .map(|path| (path.strip_prefix(top()).unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect();
    assert!(pages.len() > 10, "docs has {} pages: is this test looking at them?", pages.len());
    pages
}

/// The pages, and what stands at the top.
fn documents() -> Vec<Document> {
    let others = ["README.md", "SECURITY.md", "CHANGELOG.md", "fuzz/README.md"];
    let others = others.map(|name| (name.into(), fs::read_to_string(top().join(name)).unwrap()));
    others.into_iter().chain(pages()).collect()
}

/// The lines outside of code blocks, and those inside with the language of their block.
fn lines(text: &str) -> Vec<(Option<&str>, &str)> {
    let mut block = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.trim_start().strip_prefix("```") {
            Some(_) if block.is_some() => block = None,
            Some(language) => block = Some(language),
            None => lines.push((block, line)),
        }
    }
    assert_eq!(block, None, "a block without end");
    lines
}

/// The targets of `[text](target)` outside of code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (_, line) in lines(text).into_iter().filter(|(block, _)| block.is_none()) {
        for part in line.split("](").skip(1) {
            found.push(part.split(')').next().unwrap().to_owned());
        }
    }
    found
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let headings = lines(text).into_iter().filter(|(block, line)| block.is_none() && line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for (name, text) in documents() {
        for link in links(&text) {
            if link.starts_with("https://") {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let to = top().join(name.parent().unwrap()).join(path);
            let to = if path.is_empty() { top().join(&name) } else { to };
            assert!(to.exists(), "{}: {link} leads nowhere", name.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&to).unwrap());
                assert!(there.iter().any(|a| a == anchor), "{}: {link}: {there:?}", name.display());
            }
        }
    }
    assert!(seen > 50, "{seen}");
}

/// What is outside of `docs` is not on the site.
#[test]
fn pages_link_to_pages_and_the_table_of_contents_has_all() {
    let pages = pages();
    let (_, summary) = pages.iter().find(|(name, _)| name.ends_with("SUMMARY.md")).unwrap();
    let listed = links(summary);
    for (name, text) in &pages {
        for link in links(text) {
            assert!(!link.starts_with(".."), "{}: {link} is not on the site", name.display());
        }
        let file = name.file_name().unwrap().to_str().unwrap();
        assert!(
            file == "SUMMARY.md" || listed.iter().any(|link| link == file),
            "{file} is not in SUMMARY.md"
        );
    }
}

#[test]
fn every_page_says_first_for_whom_it_is() {
    for (name, text) in pages().iter().filter(|(name, _)| !name.ends_with("SUMMARY.md")) {
        let mut lines = text.lines().filter(|line| !line.is_empty());
        assert!(lines.next().unwrap().starts_with("# "), "{}", name.display());
        let first = lines.next().unwrap();
        assert!(first.starts_with("For whoever "), "{}: {first}", name.display());
    }
}

/// Whoever follows the page finds what it names.
#[test]
fn the_files_that_the_page_on_development_names_are_there() {
    let page = fs::read_to_string(top().join("docs/development.md")).unwrap();
    let names = page.split('`').skip(1).step_by(2).filter(|name| {
        ["src/", "tests/", "fuzz/", ".ci/"].iter().any(|folder| name.starts_with(folder))
            && !name.contains(' ')
    });
    let mut seen = 0;
    for name in names {
        assert!(top().join(name).exists(), "docs/development.md names {name}");
        seen += 1;
    }
    assert!(seen > 30, "{seen}");
}

/// An interactive zsh takes `#` for an argument.
#[test]
fn shell_blocks_have_no_comments() {
    let mut seen = 0;
    for (name, text) in documents() {
        for (_, line) in lines(&text).into_iter().filter(|(block, _)| *block == Some("sh")) {
            assert!(!line.starts_with('#') && !line.contains(" # "), "{}: {line}", name.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn the_readme_is_short() {
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 250, "{}", readme.lines().count());
    let (_, guide) = readme.split_once("<!-- guide:begin -->").unwrap();
    let (guide, _) = guide.split_once("<!-- guide:end -->").unwrap();
    assert!(guide.lines().count() <= 60, "{}", guide.lines().count());
}

/// Those that begin with the table of a webhook are whole files.
#[test]
fn the_configurations_in_the_documents_are_good() {
    let folder = std::env::temp_dir().join(format!("hookgate-documents-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("secret"), "0123456789abcdef0123456789abcdef").unwrap();
    let mut seen = 0;
    for (name, text) in documents() {
        for block in text.split("```toml\n").skip(1) {
            let (block, _) = block.split_once("```").unwrap();
            if !block.starts_with("[[webhook]]") {
                continue;
            }
            let secret = folder.join("secret");
            let config = block.replace("/run/secrets/pulumi-webhook", secret.to_str().unwrap());
            fs::write(folder.join("hookgate.toml"), config).unwrap();
            let output = Command::new(env!("CARGO_BIN_EXE_hookgate"))
                .arg("check")
                .arg(folder.join("hookgate.toml"))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}: {output:?}", name.display());
            seen += 1;
        }
    }
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(seen, 2);
}
