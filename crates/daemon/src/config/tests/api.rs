//! The `api` table.

use super::{accepted, refused, top};

fn listeners(api: &str) -> Vec<(String, bool)> {
    let (config, _) = accepted(&top(&[api]));
    let pairs = config.api.listeners.iter();
    pairs.map(|l| (l.address.to_string(), l.auth)).collect()
}

#[test]
fn the_api_listens_where_either_form_says() {
    for (api, want) in [
        ("api:", vec![("./slicer.sock", false)]),
        ("api: {}", vec![("./slicer.sock", false)]),
        ("api: {socket: /run/s.sock}", vec![("/run/s.sock", false)]),
        ("api: {bind_address: ./x}", vec![("./x", false)]),
        ("api: {bind_address: x.sock}", vec![("x.sock", false)]),
        ("api: {port: 9}", vec![("http://127.0.0.1:9", true)]),
        (
            "api: {bind_address: 127.0.0.1}",
            vec![("http://127.0.0.1:8080", true)],
        ),
        (
            "api: {bind_address: 'localhost:'}",
            vec![("http://127.0.0.1:8080", true)],
        ),
        (
            "api: {bind_address: '::1'}",
            vec![("http://[::1]:8080", true)],
        ),
        (
            "api: {bind_address: '[::1]:'}",
            vec![("http://[::1]:8080", true)],
        ),
        (
            "api: {bind_address: 127.0.0.1, auth: {enabled: false}}",
            vec![("http://127.0.0.1:8080", false)],
        ),
        (
            "api: {socket: ./s, bind_address: 127.0.0.1}",
            vec![("./s", false), ("http://127.0.0.1:8080", true)],
        ),
        ("api: {enabled: false}", vec![]),
    ] {
        let got = listeners(api);
        let got: Vec<(&str, bool)> = got.iter().map(|(a, b)| (a.as_str(), *b)).collect();
        assert_eq!(got, want, "{api}");
    }
}

#[test]
fn a_wrong_or_unwise_api_is_told() {
    for (api, want) in [
        (
            "api: {port: 65536}",
            "slicer-mac.yaml:5:15: api.port: expected a whole number from 1 to 65535, found the \
             number 65536",
        ),
        (
            "api: {bind_address: example.com}",
            "slicer-mac.yaml:5:23: api.bind_address: expected an IP address, or a socket's path \
             such as ./slicer.sock, found text \"example.com\"",
        ),
        (
            "api: {socket: ./a, bind_address: ./b}",
            "slicer-mac.yaml:5:36: api.bind_address: api.socket names a socket too: keep one of \
             the two",
        ),
        (
            "api: {auth: {token: 'very secret'}}",
            "slicer-mac.yaml:5:23: api.auth.token: not a token: 1 to 4096 ASCII letters, digits \
             and signs, no spaces",
        ),
    ] {
        assert_eq!(refused(&top(&[api])), [want], "{api}");
    }
    let long = format!("api: {{socket: /{}}}", "s".repeat(103));
    assert!(refused(&top(&[&long]))[0].contains("104 bytes are too long for a socket's name"));

    for (api, want) in [
        ("api: {enabled: false}", "no client can reach the daemon"),
        ("api: {bind_address: ./s, port: 80}", "has no effect"),
        (
            "api: {auth: {token: abc}}",
            "no listener asks for the token",
        ),
        (
            "api: {bind_address: 0.0.0.0, auth: {enabled: false}}",
            "controls the VMs",
        ),
    ] {
        let (_, warnings) = accepted(&top(&[api]));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(want), "{warnings:?}");
    }
}
