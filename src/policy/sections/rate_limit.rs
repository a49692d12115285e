//! Rate limits: token buckets per rule, evaluated before a backend is selected.

mod compile;
pub mod document;
mod selectors;
pub mod spec;

pub use crate::policy::sections::rate_limit::{document::RateLimitSection, spec::RateLimitSpec};
use crate::policy::sections::{
    rate_limit::spec::RateLimitRuleSpec,
    section::{FoundSection, Section, SectionContext},
};

impl Section for RateLimitSection {
    const KEY: &'static str = "rateLimit";
    type Spec = RateLimitSpec;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> RateLimitSpec {
        found.map_or_else(RateLimitSpec::default, |found| {
            compile::compile(found, context)
        })
    }

    fn describe(spec: &RateLimitSpec) -> Vec<String> {
        spec.rules
            .iter()
            .map(|rule| format!("{}: {rule}   (from {})", rule.name, spec.origin))
            .collect()
    }

    /// Compares rule by rule, because each rule has buckets of its own.
    fn describe_changes(old: &RateLimitSpec, new: &RateLimitSpec) -> Vec<String> {
        let mut changes = Vec::new();
        if old.headers != new.headers {
            changes.push(format!("headers {} -> {}", old.headers, new.headers));
        }
        let find = |spec: &'_ RateLimitSpec, name: &str| {
            spec.rules.iter().find(|rule| *rule.name == *name).cloned()
        };
        for rule in &old.rules {
            if find(new, &rule.name).is_none() {
                changes.push(format!("{} removed", rule.name));
            }
        }
        for rule in &new.rules {
            changes.extend(describe_rule_change(find(old, &rule.name).as_ref(), rule));
        }
        changes
    }
}

fn describe_rule_change(
    old: Option<&RateLimitRuleSpec>,
    new: &RateLimitRuleSpec,
) -> Option<String> {
    let name = &new.name;
    match old {
        None => Some(format!("{name} added: {new}; its buckets start full")),
        Some(old) if old.selectors != new.selectors => {
            Some(format!("{name}: selectors changed; its buckets start full"))
        }
        Some(old) if old.to_string() == new.to_string() => None,
        Some(old) => Some(format!(
            "{name}: {old} -> {new}; its buckets retain their share"
        )),
    }
}
