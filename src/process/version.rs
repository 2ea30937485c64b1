//! What this program is: the banner of `version` and of the start.

/// The line that tools parse; its shape is upstream's. `istio_version`: of the release this runs in.
pub fn banner(istio_version: &str) -> String {
    format!(
        "version.BuildInfo{{Version:{:?}, GitRevision:{:?}, RustVersion:{:?}, BuildProfile:{:?}, \
         BuildStatus:{:?}, IstioVersion:{istio_version:?}, CryptoProvider:\"tls-aws-lc\"}}",
        env!("CARGO_PKG_VERSION"),
        env!("UZTUNNEL_REVISION"),
        env!("UZTUNNEL_RUSTC"),
        env!("UZTUNNEL_PROFILE"),
        env!("UZTUNNEL_BUILD_STATUS"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_has_upstreams_shape() {
        let banner = banner("1.31.0");
        let inside = banner
            .strip_prefix("version.BuildInfo{")
            .and_then(|rest| rest.strip_suffix('}'));
        let inside = inside.expect("the frame");
        let keys: Vec<&str> = inside
            .split(", ")
            .filter_map(|part| part.split_once(":\""))
            .map(|(key, _)| key)
            .collect();
        assert_eq!(
            keys,
            [
                "Version",
                "GitRevision",
                "RustVersion",
                "BuildProfile",
                "BuildStatus",
                "IstioVersion",
                "CryptoProvider"
            ]
        );
        assert!(inside.contains("IstioVersion:\"1.31.0\""));
    }
}
