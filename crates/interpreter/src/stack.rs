//! The initial stack of a process, as the kernel lays it out: the number of arguments, the arguments, null, the environment,
//! null, the auxiliary vector.

use core::ffi::{CStr, c_char};

/// Address of the program headers.
pub const AT_PHDR: usize = 3;
/// Number of program headers.
pub const AT_PHNUM: usize = 5;
/// Where the dynamic linker lies.
pub const AT_BASE: usize = 7;
/// 0 as the kernel has it; the front's own use: [`crate::run::start`].
pub const AT_FLAGS: usize = 8;
/// Where the program begins.
pub const AT_ENTRY: usize = 9;
/// Whether the program has more rights than its caller.
pub const AT_SECURE: usize = 23;
/// The name that was given to execve.
pub const AT_EXECFN: usize = 31;
const AT_NULL: usize = 0;

/// The initial stack of this process. Its strings live as long as the process.
#[derive(Debug)]
pub struct Stack {
    arguments: *const *const u8,
    count: usize,
    environment: *mut *const u8,
    auxiliary: *mut [usize; 2],
}

impl Stack {
    /// Reads the layout.
    ///
    /// # Safety
    /// `top` is the stack pointer with which the kernel started this process, and nobody has changed what lies above it.
    #[must_use]
    pub unsafe fn read(top: *mut usize) -> Self {
        // SAFETY: this is the layout that the kernel guarantees.
        unsafe {
            let count = top.read();
            let arguments = top.add(1).cast::<*const u8>();
            let environment = arguments.add(count + 1);
            let mut end = environment;
            while !end.read().is_null() {
                end = end.add(1);
            }
            Self { arguments, count, environment, auxiliary: end.add(1).cast() }
        }
    }

    /// An argument; the first is number 0.
    #[must_use]
    pub fn argument(&self, number: usize) -> Option<&'static CStr> {
        // SAFETY: there are as many strings as the kernel counted.
        (number < self.count).then(|| unsafe { string(self.arguments.add(number).read()) })
    }

    /// The arguments from one on, for execve: they end in null.
    #[must_use]
    pub fn arguments_from(&self, number: usize) -> *const *const u8 {
        // SAFETY: the array has as many strings as counted, and a null.
        unsafe { self.arguments.add(number.min(self.count)) }
    }

    /// The environment, for execve: it ends in null.
    #[must_use]
    pub fn environment(&self) -> *const *const u8 {
        self.environment
    }

    /// The value of a variable; None for an empty one. The name comes with its `=`.
    #[must_use]
    pub fn variable(&self, name: &[u8]) -> Option<&'static CStr> {
        let mut at = self.environment.cast_const();
        loop {
            // SAFETY: the environment ends in null, which is not gone past.
            let entry = unsafe { at.read() };
            if entry.is_null() {
                return None;
            }
            // SAFETY: the entry is a string of the environment.
            let entry = unsafe { string(entry) };
            if let Some(value) = entry.to_bytes_with_nul().strip_prefix(name).filter(|value| value.len() > 1) {
                return CStr::from_bytes_with_nul(value).ok();
            }
            // SAFETY: the entry was not the null.
            at = unsafe { at.add(1) };
        }
    }

    /// An entry of the auxiliary vector.
    #[must_use]
    pub fn auxiliary(&self, kind: usize) -> Option<usize> {
        // SAFETY: the place was found in the vector.
        self.place(kind).map(|place| unsafe { place.read()[1] })
    }

    /// A string that an entry of the auxiliary vector leads to.
    #[must_use]
    pub fn auxiliary_string(&self, kind: usize) -> Option<&'static CStr> {
        // SAFETY: the caller asks for an entry whose value is a string of the kernel's.
        self.auxiliary(kind).map(|address| unsafe { string(core::ptr::with_exposed_provenance(address)) })
    }

    /// Changes an entry of the auxiliary vector, if there is one.
    pub fn set_auxiliary(&mut self, kind: usize, value: usize) {
        if let Some(place) = self.place(kind) {
            // SAFETY: the place was found in the vector, which is this process's own.
            unsafe { place.write([kind, value]) };
        }
    }

    /// Adds a variable to the end of the environment, over the auxiliary vector's first word: only for an exec that follows.
    pub fn add_variable(&mut self, variable: &'static CStr) {
        let mut end = self.environment;
        // SAFETY: the environment ends in null, and at least two words of the auxiliary vector follow it.
        unsafe {
            while !end.read().is_null() {
                end = end.add(1);
            }
            end.write(variable.as_ptr().cast());
            end.add(1).write(core::ptr::null());
        }
    }

    fn place(&self, kind: usize) -> Option<*mut [usize; 2]> {
        let mut place = self.auxiliary;
        loop {
            // SAFETY: the vector ends in AT_NULL, which is not gone past.
            match unsafe { place.read()[0] } {
                found if found == kind => return Some(place),
                AT_NULL => return None,
                // SAFETY: this entry was not the last.
                _ => place = unsafe { place.add(1) },
            }
        }
    }
}

/// # Safety
/// `start` is a string of the initial stack, which ends in NUL and is not changed while the process lives.
unsafe fn string(start: *const u8) -> &'static CStr {
    // SAFETY: the caller answers for it.
    unsafe { CStr::from_ptr(start.cast::<c_char>()) }
}
