use super::*;

#[test]
fn an_entry_means_every_place_that_it_can_mean() {
    let of = |entry: &str| {
        expanded(entry.as_bytes(), Path::new("/opt/app/bin")).map(|p| p.iter().map(|p| p.display().to_string()).collect::<Vec<_>>())
    };
    assert_eq!(of("/usr/lib").unwrap(), ["/usr/lib"]);
    assert_eq!(of("$ORIGIN/../lib").unwrap(), ["/opt/app/bin/../lib"]);
    assert_eq!(of("${ORIGIN}").unwrap(), ["/opt/app/bin"]);
    assert_eq!(of("/x/$LIB").unwrap(), ["/x/lib/x86_64-linux-gnu", "/x/lib64", "/x/lib"]);
    assert_eq!(of("$ORIGIN/$PLATFORM/y").unwrap().len(), PLATFORM.len());
    for relative in ["", ".", "lib", "lib/$ORIGIN", "$SOMETHING"] {
        assert!(matches!(of(relative), Err(LoadError::ForeignLibrary(_))), "{relative:?}");
    }
}

#[test]
fn the_libraries_of_the_systems_own_programs_are_the_administrators() {
    struct Whole(Vec<u8>);
    impl PageSource for Whole {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
            let start = usize::try_from(offset).unwrap();
            buf.copy_from_slice(self.0.get(start..start + buf.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }
    for program in ["/bin/ls", "/usr/bin/git", "/usr/bin/python3"] {
        let Ok(bytes) = std::fs::read(program) else {
            println!("{program}: not run here, it is not installed");
            continue;
        };
        let libraries = Libraries::of(&Whole(bytes)).unwrap();
        assert!(!libraries.needs.libraries.is_empty());
        libraries.check(Path::new(program)).unwrap();
        let known = libraries.known.lock().unwrap();
        let seen = &known.as_ref().unwrap().seen;
        assert!(seen.is_unchanged() && format!("{seen:?}").contains("libc.so.6"), "{seen:?}");
    }
}
