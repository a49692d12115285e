//! Parses a YAML text into a tree whose nodes know their position.
//!
//! The types in `document` have no positions. For a diagnostic, the path of a value (`spec`,
//! `routes`, 2, `backendRefs`, 0) is looked up in this tree. Both use the same YAML parser, so
//! that they agree on the contents of the text. The tree knows no schema.

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

/// Line and column, both from 1.
pub(super) type Position = (usize, usize);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) kind: NodeKind,
}

#[derive(Debug)]
pub(super) enum NodeKind {
    Scalar {
        text: String,
        is_plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(MappingKey, Node)>),
    /// Reference to an anchor. Its value is checked only where the anchor is defined.
    Alias,
}

#[derive(Debug)]
pub(super) struct MappingKey {
    pub(super) position: Position,
    pub(super) text: String,
}

/// Step from a node to one of its children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathSegment {
    Key(String),
    Index(usize),
}

/// Path from the root of a document to a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodePath(Vec<PathSegment>);

impl NodePath {
    pub(super) fn key(&self, key: &str) -> Self {
        self.join(PathSegment::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.join(PathSegment::Index(index))
    }

    fn join(&self, segment: PathSegment) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment);
        Self(segments)
    }
}

impl Node {
    /// Returns the position of the value at the path, or of its nearest existing ancestor.
    pub(super) fn locate(&self, path: &NodePath) -> Position {
        let mut node = self;
        let mut position = self.position;
        for segment in &path.0 {
            let child = match (&node.kind, segment) {
                (NodeKind::Mapping(entries), PathSegment::Key(wanted)) => entries
                    .iter()
                    .find(|(key, _)| key.text == *wanted)
                    .map(|(key, child)| {
                        // A scalar has its own position; a collection has the position of its key.
                        let child_position = if matches!(child.kind, NodeKind::Scalar { .. }) {
                            child.position
                        } else {
                            key.position
                        };
                        (child_position, child)
                    }),
                (NodeKind::Sequence(items), PathSegment::Index(index)) => {
                    items.get(*index).map(|child| (child.position, child))
                }
                _ => None,
            };
            let Some((child_position, child)) = child else {
                break;
            };
            (position, node) = (child_position, child);
        }
        position
    }

    pub(super) fn is_null(&self) -> bool {
        match &self.kind {
            NodeKind::Scalar {
                text,
                is_plain: true,
            } => matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"),
            _ => false,
        }
    }
}

/// Parses all documents of a text, and omits empty documents.
///
/// # Errors
/// Returns the position and the message of the first syntax error.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, (Position, String)> {
    let mut documents = Vec::new();
    let mut open_nodes: Vec<NodeBuilder> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|fault| {
            (
                (fault.marker().line(), fault.marker().col() + 1),
                fault.info().to_owned(),
            )
        })?;
        let position = (span.start.line(), span.start.col() + 1);
        let finished = match event {
            Event::Scalar(text, style, ..) => Some(Node {
                position,
                kind: NodeKind::Scalar {
                    text: text.into_owned(),
                    is_plain: style == ScalarStyle::Plain,
                },
            }),
            Event::Alias(_) => Some(Node {
                position,
                kind: NodeKind::Alias,
            }),
            Event::SequenceStart(..) => {
                open_nodes.push(NodeBuilder {
                    position,
                    kind: NodeBuilderKind::Sequence(Vec::new()),
                });
                None
            }
            Event::MappingStart(..) => {
                open_nodes.push(NodeBuilder {
                    position,
                    kind: NodeBuilderKind::Mapping(Vec::new(), None),
                });
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open_nodes.pop().map(NodeBuilder::finish),
            _ => None,
        };
        if let Some(node) = finished {
            match open_nodes.last_mut() {
                Some(parent) => parent.push(node),
                None if node.is_null() => {}
                None => documents.push(node),
            }
        }
    }
    Ok(documents)
}

struct NodeBuilder {
    position: Position,
    kind: NodeBuilderKind,
}

enum NodeBuilderKind {
    Sequence(Vec<Node>),
    /// Completed entries, and the key whose value is not parsed yet.
    Mapping(Vec<(MappingKey, Node)>, Option<MappingKey>),
}

impl NodeBuilder {
    fn push(&mut self, node: Node) {
        match &mut self.kind {
            NodeBuilderKind::Sequence(items) => items.push(node),
            NodeBuilderKind::Mapping(entries, pending_key) => match pending_key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let text = if let NodeKind::Scalar { text, .. } = node.kind {
                        text
                    } else {
                        String::new()
                    };
                    *pending_key = Some(MappingKey {
                        position: node.position,
                        text,
                    });
                }
            },
        }
    }

    fn finish(self) -> Node {
        let kind = match self.kind {
            NodeBuilderKind::Sequence(items) => NodeKind::Sequence(items),
            NodeBuilderKind::Mapping(entries, _) => NodeKind::Mapping(entries),
        };
        Node {
            position: self.position,
            kind,
        }
    }
}

#[cfg(test)]
mod tests;
