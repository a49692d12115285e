//! Rate limits: token buckets per rule, evaluated before a backend is selected.

mod compile;
pub mod document;
mod selectors;
pub mod spec;

pub use crate::policy::sections::rate_limit::{document::RateLimitSection, spec::RateLimitSpec};
use crate::policy::sections::{
    description::Description,
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

    fn describe(spec: &RateLimitSpec) -> Vec<Description> {
        let describe = |rule: &RateLimitRuleSpec| {
            Description::default()
                .with("rule", format_args!("{}: {rule}", rule.name))
                .with_origin(&spec.origin)
        };
        spec.rules.iter().map(describe).collect()
    }

    /// Compares rule by rule, because each rule has buckets of its own.
    fn describe_changes(old: &RateLimitSpec, new: &RateLimitSpec) -> Vec<String> {
        let mut changes = Vec::new();
        if old.headers != new.headers {
            changes.push(format!(
                "rateLimitHeaders {} -> {}",
                old.headers, new.headers
            ));
        }
        let removed = old
            .rules
            .iter()
            .filter(|rule| new.find_rule(&rule.name).is_none());
        changes.extend(removed.map(|rule| format!("rule {} removed", rule.name)));
        for rule in &new.rules {
            changes.extend(describe_rule_change(old.find_rule(&rule.name), rule));
        }
        let order = |from: &RateLimitSpec, other: &RateLimitSpec| -> Vec<_> {
            let rules = from.rules.iter().map(|rule| rule.name.clone());
            rules
                .filter(|name| other.find_rule(name).is_some())
                .collect()
        };
        if order(old, new) != order(new, old) {
            changes.push("order of the rules changed".to_owned());
        }
        changes
    }
}

fn describe_rule_change(
    old: Option<&RateLimitRuleSpec>,
    new: &RateLimitRuleSpec,
) -> Option<String> {
    let name = &new.name;
    let Some(old) = old else {
        return Some(format!("rule {name} added: {new}"));
    };
    let has_other_selectors = old.selectors != new.selectors;
    let values = if old.to_string() == new.to_string() {
        has_other_selectors.then(|| "selectors changed".to_owned())?
    } else if has_other_selectors {
        format!("{old} -> {new}, selectors changed")
    } else {
        format!("{old} -> {new}")
    };
    let effect = if new.is_global {
        ""
    } else if has_other_selectors {
        "; its buckets start full"
    } else {
        "; its buckets retain their share"
    };
    Some(format!("rule {name}: {values}{effect}"))
}
