use crate::policy::tree::*;

const TEXT: &str = "# head\na: 1\nb:\n  - x\n  - {c: [2, 3]}\n---\n---\nd: e\n";

#[test]
fn a_path_locates_its_value_or_the_nearest_ancestor() {
    let documents = parse(TEXT).expect("good");
    assert_eq!(documents.len(), 2, "an empty document is left out");
    let root = NodePath::default();
    let b = root.key("b");
    for (path, expected) in [
        (root.key("a"), (2, 4)),
        (b.clone(), (3, 1)),
        (b.index(0), (4, 5)),
        (b.index(1).key("c").index(1), (5, 13)),
        (b.index(1).key("missing").key("deeper"), (5, 5)),
    ] {
        assert_eq!(documents[0].locate(&path), expected, "{path:?}");
    }
    assert_eq!(documents[1].locate(&root.key("d")), (8, 4));
}

#[test]
fn a_yaml_syntax_error_has_a_position() {
    let ((line, _), _) = parse("a: 1\nb: [1, 2\nc: }\n").expect_err("bad");
    assert!(line >= 2);
}
