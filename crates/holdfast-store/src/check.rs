//! Findings of [`Store::check`](crate::Store::check) that read the same for every backend.

use crate::StoreCheck;

impl StoreCheck {
    /// Nothing is wrong.
    pub(crate) fn ok(detail: impl Into<String>) -> Self {
        Self { ok: true, code: "ok", detail: detail.into() }
    }

    /// Something is wrong.
    pub(crate) fn failed(code: &'static str, detail: impl Into<String>) -> Self {
        Self { ok: false, code, detail: detail.into() }
    }

    /// The database was never used by Holdfast.
    pub(crate) fn not_migrated(place: &str) -> Self {
        let detail =
            format!("{place} has no tables of Holdfast yet; starting the server makes them");
        Self::failed("missing_table", detail)
    }

    /// The schema is up to date and yet incomplete.
    pub(crate) fn table_missing(table: &str) -> Self {
        let detail = format!(
            "the table `{table}` is missing although the schema is up to date; somebody removed \
             it: restore the database from a backup"
        );
        Self::failed("missing_table", detail)
    }

    /// The finding about a schema version that is not the latest.
    pub(crate) fn of_version(found: i64, latest: i64) -> Option<Self> {
        if found > latest {
            return Some(Self::failed("newer_schema", crate::sql::migrate::newer(found, latest)));
        }
        (found < latest).then(|| {
            let detail = format!(
                "the database is at schema version {found}, this version of Holdfast needs \
                 {latest}; starting the server brings it up to date"
            );
            Self::failed("old_schema", detail)
        })
    }
}
