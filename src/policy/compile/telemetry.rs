//! Compiles the access log section of `telemetry`.

use crate::policy::{
    compile::compiler::Compiler, document::AccessLogFormat, snapshot::AccessLogSpec,
};

impl Compiler<'_> {
    pub(super) fn compile_access_log(&mut self) -> AccessLogSpec {
        let section =
            self.find_single_section("telemetry", |document| document.spec.telemetry.as_ref());
        let log = section
            .and_then(|(_, telemetry)| telemetry.access_log.clone())
            .unwrap_or_default();
        AccessLogSpec {
            is_enabled: log.format != Some(AccessLogFormat::Off),
            sampling_ratio: log
                .sampling_percentage
                .map_or(1.0, |percent| percent.0 / 100.0),
            always_logged_statuses: log.always_log_codes.unwrap_or_default().iter().collect(),
        }
    }
}
