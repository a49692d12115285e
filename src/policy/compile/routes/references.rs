//! What routes refer to by name: listeners, backends and policies.

use std::collections::HashMap;

use crate::policy::{
    compile::backends::CompiledBackend, report::FieldLocation, sections::SectionScope,
    snapshot::ListenerSpec,
};

/// Compiled items that routes refer to by name.
pub(in crate::policy::compile) struct RouteReferences<'t, 'a> {
    pub(in crate::policy::compile) listeners: &'t [(FieldLocation<'a>, ListenerSpec)],
    pub(in crate::policy::compile) backends: &'t [(FieldLocation<'a>, CompiledBackend<'a>)],
    pub(in crate::policy::compile) policies: &'t HashMap<&'a str, SectionScope<'a>>,
    pub(in crate::policy::compile) defaults: Option<&'t SectionScope<'a>>,
}

impl<'a> RouteReferences<'_, 'a> {
    /// Returns the sections of the policy that a backend refers to, if it refers to one.
    pub(super) fn backend_scope(&self, backend: usize) -> Option<SectionScope<'a>> {
        let name = self.backends[backend].1.policy_name?;
        let scope = self.policies.get(name)?;
        Some(scope.as_backend_policy(name))
    }
}
