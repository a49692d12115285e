//! The `mode` of a protective section.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::resilience::Mode;

/// Whether a section acts on requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum ModeSetting {
    /// Decides and acts on the decision.
    #[default]
    Enforce,
    /// Decides, counts and explains like Enforce, but admits the request.
    Shadow,
    /// Disables the section, and does not inherit another one.
    Off,
}

impl ModeSetting {
    /// Returns the mode of the compiled section.
    pub(in crate::policy) fn mode(self) -> Mode {
        match self {
            Self::Enforce => Mode::Enforce,
            Self::Shadow => Mode::Shadow,
            Self::Off => Mode::Off,
        }
    }
}
