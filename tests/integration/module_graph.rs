//! The graph of imports between the modules of `src/`; see ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Folders of the data plane. A folder imports only those that follow it.
const PROXY_FOLDERS: &[&str] = &[
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

/// Imported modules by module, for example `proxy/attempt/retry`. Unit tests are left out.
type ModuleGraph = BTreeMap<String, BTreeSet<String>>;

fn module_graph() -> ModuleGraph {
    let mut texts = BTreeMap::new();
    read_modules(Path::new(SOURCE), "", &mut texts);
    let imports = |(module, text): (&String, &String)| {
        let paths = imported_paths(text);
        let imported = paths.iter().filter_map(|path| {
            // The longest prefix that is a module; the rest names an item.
            let prefixes = (1..=path.len())
                .rev()
                .map(|length| path[..length].join("/"));
            prefixes
                .into_iter()
                .find(|prefix| texts.contains_key(prefix))
        });
        let others = imported.filter(|imported| imported != module);
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
        } else if stem != "tests" {
            texts.insert(
                format!("{prefix}{stem}"),
                fs::read_to_string(&path).unwrap(),
            );
        }
    }
}

/// Paths below `crate` that a file names, in `use` declarations and elsewhere.
fn imported_paths(text: &str) -> Vec<Vec<String>> {
    let code: String = text
        .lines()
        .filter_map(|line| line.split("//").next())
        .flat_map(str::chars)
        .filter(|character| !character.is_whitespace())
        .collect();
    // A visibility names a folder and imports nothing.
    let code = code.replace("(incrate::", "(");
    let mut paths = Vec::new();
    for rest in code.split("crate::").skip(1) {
        expand_use_tree(rest, &[], &mut paths);
    }
    paths
}

/// Expands `a::{b::C, d}` to its paths, and returns what follows the tree.
fn expand_use_tree<'t>(text: &'t str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'t str {
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.is_empty() && !rest.starts_with('}') {
            rest = expand_use_tree(rest, prefix, paths);
            // What ends an item is a comma; anything else ends a malformed tree.
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => break,
            }
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let end = text
        .find(|character: char| !character.is_alphanumeric() && character != '_')
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
    let text = "use crate::{\n    a::{b::C, d},\n    e, // f\n};\nlet x = crate::g::h(1);";
    let paths = imported_paths(text);
    let joined: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(joined, ["a::b::C", "a::d", "e", "g::h"]);
}

#[test]
fn no_modules_import_each_other() {
    let graph = module_graph();
    let in_cycles: Vec<&str> = graph
        .keys()
        .map(String::as_str)
        .filter(|module| is_in_cycle(module, &graph))
        .collect();
    assert!(in_cycles.is_empty(), "{in_cycles:?} import each other");
}

#[test]
fn a_proxy_folder_imports_only_folders_that_follow_it() {
    let position = |module: &str| {
        let folder = module.strip_prefix("proxy/")?.split('/').next()?;
        let position = PROXY_FOLDERS.iter().position(|known| *known == folder);
        Some(position.unwrap_or_else(|| panic!("{module} is in no known folder")))
    };
    for (module, imported) in module_graph() {
        let Some(own) = position(&module) else {
            continue;
        };
        for imported in &imported {
            assert!(
                position(imported).is_none_or(|other| other >= own),
                "{module} imports {imported}, whose folder comes before its own"
            );
        }
    }
}

#[test]
fn architecture_md_names_every_module() {
    let page = include_str!("../../ARCHITECTURE.md");
    let words: BTreeSet<&str> = page
        .split(|character: char| !character.is_alphanumeric() && character != '_')
        .collect();
    for module in module_graph().keys() {
        let name = module.rsplit('/').next().unwrap();
        assert!(
            words.contains(name),
            "ARCHITECTURE.md does not name {module}"
        );
    }
}
