//! The graph of imports between the modules of `src/`, and its rules in ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Folders of the data plane. A folder imports only those that follow it.
const PROXY_FOLDERS: &[&str] = &[
    "fuzzing",
    "accept",
    "serve",
    "response",
    "attempt",
    "admission",
    "headers",
    "downstream",
    "request",
    "upstream",
    "wire",
];

/// Imported modules by module, for example `proxy/attempt/retry` or `proxy/attempt/retry/tests`.
type ModuleGraph = BTreeMap<String, BTreeSet<String>>;

pub(super) fn module_graph() -> ModuleGraph {
    let mut texts = BTreeMap::new();
    read_modules(Path::new(SOURCE), "", &mut texts);
    let imports = |(module, text): (&String, &String)| {
        let code = without_comments(text);
        let paths = imported_paths(&code);
        let absolute = paths.iter().filter_map(|path| {
            // The longest prefix that is a module. The rest of the path names an item.
            let prefixes = (1..=path.len())
                .rev()
                .map(|length| path[..length].join("/"));
            prefixes
                .into_iter()
                .find(|prefix| texts.contains_key(prefix))
        });
        let children = texts.keys().filter(|other| {
            let child = other.strip_prefix(&format!("{module}/"));
            child.is_some_and(|child| !child.contains('/') && names_child(&code, child))
        });
        let others = absolute
            .chain(children.cloned())
            .filter(|imported| imported != module);
        (module.clone(), others.collect())
    };
    texts.iter().map(imports).collect()
}

fn read_modules(directory: &Path, prefix: &str, texts: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            read_modules(&path, &format!("{prefix}{stem}/"), texts);
        } else if stem == "mod" {
            let module = prefix.trim_end_matches('/').to_owned();
            texts.insert(module, fs::read_to_string(&path).unwrap());
        } else {
            texts.insert(
                format!("{prefix}{stem}"),
                fs::read_to_string(&path).unwrap(),
            );
        }
    }
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().filter_map(|line| line.split("//").next());
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether a file names an item of its child module by a relative path, as in `child::f()`.
fn names_child(code: &str, child: &str) -> bool {
    code.match_indices(&format!("{child}::")).any(|(index, _)| {
        let before = code[..index].chars().next_back();
        before.is_none_or(|before| !is_identifier(before) && before != ':')
    })
}

/// Paths below `crate` that a file names, in `use` declarations and elsewhere.
fn imported_paths(code: &str) -> Vec<Vec<String>> {
    // `x as y` names the module `x`.
    let mut words = code.split_whitespace();
    let mut compact = String::new();
    while let Some(word) = words.next() {
        match word {
            "as" => {
                let renamed = words.next().unwrap_or_default();
                let end = renamed.find(|character: char| !is_identifier(character));
                compact += end.map_or("", |end| &renamed[end..]);
            }
            word => compact += word,
        }
    }
    // A visibility names a folder and imports nothing.
    let compact = compact.replace("(incrate::", "(");
    let mut paths = Vec::new();
    for rest in compact.split("crate::").skip(1) {
        expand_use_tree(rest, &[], &mut paths);
    }
    paths
}

fn is_identifier(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Expands `a::{b::C, d}` to its paths, and returns the text after the tree.
fn expand_use_tree<'t>(text: &'t str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'t str {
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.is_empty() && !rest.starts_with('}') {
            rest = expand_use_tree(rest, prefix, paths);
            // A comma follows an item. Anything else ends the tree.
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => break,
            }
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let end = text
        .find(|character| !is_identifier(character))
        .unwrap_or(text.len());
    let mut path = prefix.to_vec();
    path.push(text[..end].to_owned());
    match text[end..].strip_prefix("::") {
        Some(rest) => expand_use_tree(rest, &path, paths),
        None => {
            paths.push(path);
            &text[end..]
        }
    }
}

fn is_in_cycle(module: &str, graph: &ModuleGraph) -> bool {
    let (mut pending, mut seen) = (vec![module], BTreeSet::new());
    while let Some(next) = pending.pop() {
        for imported in graph.get(next).into_iter().flatten() {
            if imported == module {
                return true;
            }
            if seen.insert(imported) {
                pending.push(imported);
            }
        }
    }
    false
}

#[test]
fn use_trees_expand_to_the_paths_of_their_items() {
    let text = "use crate::{\n    a::{b::C, d as x},\n    e, // f\n};\nlet x = crate::g::h(1);";
    let paths = imported_paths(&without_comments(text));
    let joined: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(joined, ["a::b::C", "a::d", "e", "g::h"]);
}

#[test]
fn the_imports_of_modules_have_no_cycle() {
    let graph = module_graph();
    let in_cycles: Vec<&str> = graph
        .keys()
        .map(String::as_str)
        .filter(|module| is_in_cycle(module, &graph))
        .collect();
    assert!(
        in_cycles.is_empty(),
        "the imports of {in_cycles:?} have a cycle"
    );
}

#[test]
fn a_proxy_folder_imports_only_folders_that_follow_it() {
    let position = |module: &str| {
        let folder = module.strip_prefix("proxy/")?.split('/').next()?;
        let position = PROXY_FOLDERS.iter().position(|known| *known == folder);
        Some(position.unwrap_or_else(|| panic!("the folder of {module} is unknown")))
    };
    for (module, imported) in module_graph() {
        let Some(own) = position(&module) else {
            continue;
        };
        for imported in &imported {
            assert!(
                position(imported).is_none_or(|other| other >= own),
                "{module} imports {imported}, whose folder precedes its own"
            );
        }
    }
}

#[test]
fn a_relative_path_to_a_child_module_is_an_import() {
    assert!(names_child("let x = child::f();", "child"));
    assert!(names_child("use child::{f, g};", "child"));
    assert!(!names_child("use crate::other::child::f;", "child"));
    assert!(!names_child("grandchild::f()", "child"));
}

/// Returns the words of each table row of ARCHITECTURE.md that lists modules, by folder.
fn documented_folders(page: &str) -> BTreeMap<String, BTreeSet<&str>> {
    let rows = page.lines().filter_map(|line| {
        let (folder, modules) = line.strip_prefix("| `")?.split_once("/` | ")?;
        let folder = folder.strip_prefix("src").unwrap_or(folder);
        let words = modules.split(|character| !is_identifier(character));
        Some((folder.to_owned(), words.collect()))
    });
    rows.collect()
}

#[test]
fn architecture_md_lists_every_module_in_the_row_of_its_folder() {
    let page = include_str!("../../ARCHITECTURE.md");
    let folders = documented_folders(page);
    let graph = module_graph();
    for module in graph.keys().filter(|module| !module.ends_with("/tests")) {
        let is_below = |folder: &str| {
            folder.is_empty()
                || module
                    .strip_prefix(folder)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        let rows = folders.iter().filter(|(folder, _)| is_below(folder));
        let (folder, words) = rows.max_by_key(|(folder, _)| folder.len()).unwrap();
        let name = module.rsplit('/').next().unwrap();
        assert!(
            words.contains(name) || folders.contains_key(module),
            "the row `{folder}/` of ARCHITECTURE.md does not list {module}"
        );
    }
}
