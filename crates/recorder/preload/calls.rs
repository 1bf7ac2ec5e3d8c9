//! The functions of the C library that are intercepted, each noted around the real system call.
//!
//! Decides nothing beyond the one failure that was asked for. Invariant: what is not below the
//! recorded directory, not the ledger and not a way out costs one look at a table.
//!
//! Every function here has the type of the one in the C library that it stands for; the variadic
//! ones are declared with their last argument, which x86-64 and AArch64 pass the same way.

use crate::descriptors::{Class, class, forget};
use crate::notes::{Config, PARTS, config, note, note_end};
use crate::raw::{self, answer, resolve, system_call};
use libc::{c_char, c_int, c_uint, c_void, iovec, mode_t, msghdr, off_t, size_t, ssize_t};
use rallypoint_recorder::record::{CREATED, CUTS, DIRECTORY, DURABLE, Head, Kind};
use std::ffi::CStr;
use std::slice;

/// Bytes of what is sent that a note keeps.
const SENT: usize = 256;

// ---- opening and closing -------------------------------------------------------------------------

fn open_at(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let open = || system_call!(libc::SYS_openat, directory, path, flags, mode);
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0 && flags & libc::O_TMPFILE != libc::O_TMPFILE;
    let found =
        config().filter(|_| changes).and_then(|config| Some((config, recorded(config, directory, path)?)));
    let result = match found {
        None => open(),
        Some((config, place)) => {
            let existed = raw::stat_at(directory, c_str(path)).is_some();
            let cuts = if flags & libc::O_TRUNC != 0 && existed { CUTS } else { 0 };
            let head = Head { flags: cuts, ..Head::new(Kind::Create) };
            let begin = note(config, head, place.as_bytes(), &[]);
            let result = open();
            let stat = if result < 0 { None } else { raw::stat(result as c_int) };
            let inode = stat.map_or(0, |stat| stat.st_ino);
            note_end(config, begin, result, inode, 0, if existed { 0 } else { CREATED });
            result
        }
    };
    if result >= 0 {
        forget(result as c_int);
        if let Some(config) = config() {
            // Known from now on, before its name may change.
            class(config, result as c_int);
        }
    }
    answer(result) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open_at(libc::AT_FDCWD, path, flags, mode)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open_at(libc::AT_FDCWD, path, flags | libc::O_LARGEFILE, mode)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open_at(directory, path, flags, mode)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open_at(directory, path, flags | libc::O_LARGEFILE, mode)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    open_at(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn creat64(path: *const c_char, mode: mode_t) -> c_int {
    open_at(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    forget(fd);
    answer(raw::close(fd)) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    for fd in first..=last.min(1 << 16) {
        forget(fd.cast_signed());
    }
    answer(system_call!(libc::SYS_close_range, first, last, flags)) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup(fd: c_int) -> c_int {
    let result = system_call!(libc::SYS_dup, fd);
    forget(result as c_int);
    answer(result) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup2(fd: c_int, to: c_int) -> c_int {
    if fd == to {
        // dup3 refuses this case; dup2 only says whether the descriptor is open.
        let open = system_call!(libc::SYS_fcntl, fd, libc::F_GETFD);
        return answer(if open < 0 { open } else { i64::from(fd) }) as c_int;
    }
    forget(to);
    answer(system_call!(libc::SYS_dup3, fd, to, 0)) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    forget(to);
    answer(system_call!(libc::SYS_dup3, fd, to, flags)) as c_int
}

// ---- writing -------------------------------------------------------------------------------------

/// Where a write goes.
#[derive(Clone, Copy)]
enum At {
    /// At the descriptor's own place.
    Current,
    Offset(off_t),
}

fn written(fd: c_int, parts: &[iovec], at: At, synced: bool, write: impl Fn(&[iovec]) -> i64) -> ssize_t {
    let result = match config().map(|config| (config, class(config, fd))) {
        None | Some((_, Class::Other | Class::Directory { .. })) => write(parts),
        Some((config, Class::WayOut)) => sent(config, parts, || write(parts)),
        Some((config, Class::Ledger)) => {
            let parts = &parts[..parts.len().min(PARTS)];
            let begin = note(config, Head::new(Kind::Ledger), &[], parts);
            let result = write(parts);
            note_end(config, begin, result, 0, 0, 0);
            result
        }
        Some((config, Class::File { inode, durable })) => {
            let parts = &parts[..parts.len().min(PARTS)];
            let len = total(parts);
            let offset = match at {
                At::Offset(offset) => offset,
                At::Current if raw::flags(fd) & libc::O_APPEND != 0 => {
                    raw::stat(fd).map_or(0, |stat| stat.st_size)
                }
                At::Current => raw::seek(fd, 0, libc::SEEK_CUR),
            };
            let flags = if durable || synced { DURABLE } else { 0 };
            let offset = offset.cast_unsigned();
            let begin =
                note(config, Head { inode, offset, len, flags, ..Head::new(Kind::Write) }, &[], parts);
            let result = config.failure(fd, false).unwrap_or_else(|| write(parts));
            let offset = match at {
                // Another process may have appended in between.
                At::Current if result > 0 => (raw::seek(fd, 0, libc::SEEK_CUR) - result).cast_unsigned(),
                _ => offset,
            };
            note_end(config, begin, result, inode, offset, 0);
            result
        }
    };
    answer(result) as ssize_t
}

fn sent(config: &Config, parts: &[iovec], send: impl FnOnce() -> i64) -> i64 {
    let mut head = [0; SENT];
    let mut kept = 0;
    for part in parts {
        let take = part.iov_len.min(SENT - kept);
        if take > 0 {
            // SAFETY: the program handed this memory to a sending call, which would read it too.
            let bytes = unsafe { slice::from_raw_parts(part.iov_base.cast::<u8>(), take) };
            head[kept..kept + take].copy_from_slice(bytes);
            kept += take;
        }
    }
    let data = [iovec { iov_base: head.as_mut_ptr().cast(), iov_len: kept }];
    let begin = note(config, Head { len: total(parts), ..Head::new(Kind::Send) }, &[], &data);
    let result = send();
    note_end(config, begin, result, 0, 0, 0);
    result
}

fn total(parts: &[iovec]) -> u64 {
    parts.iter().map(|part| part.iov_len as u64).sum()
}

fn one(data: *const c_void, len: size_t) -> [iovec; 1] {
    [iovec { iov_base: data.cast_mut(), iov_len: len }]
}

fn vectors<'a>(parts: *const iovec, count: c_int) -> &'a [iovec] {
    let count = usize::try_from(count).unwrap_or(0);
    if parts.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the program promises `count` vectors to the function of the same name.
    unsafe { slice::from_raw_parts(parts, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, data: *const c_void, len: size_t) -> ssize_t {
    let write = |_: &[iovec]| system_call!(libc::SYS_write, fd, data, len);
    written(fd, &one(data, len), At::Current, false, write)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    written(fd, vectors(parts, count), At::Current, false, |parts| raw::write_vectors(fd, parts))
}

fn write_at(fd: c_int, data: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    let write = |_: &[iovec]| system_call!(libc::SYS_pwrite64, fd, data, len, offset);
    written(fd, &one(data, len), At::Offset(offset), false, write)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, data: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    write_at(fd, data, len, offset)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, data: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    write_at(fd, data, len, offset)
}

fn write_vectors_at(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    let synced = flags & (libc::RWF_DSYNC | libc::RWF_SYNC) != 0;
    let at = if offset == -1 { At::Current } else { At::Offset(offset) };
    // The kernel takes the offset in two halves; on 64 bits the first holds all of it.
    let write = |parts: &[iovec]| {
        system_call!(libc::SYS_pwritev2, fd, parts.as_ptr(), parts.len(), offset, 0_usize, flags)
    };
    written(fd, vectors(parts, count), at, synced, write)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    write_vectors_at(fd, parts, count, offset, 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev64(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    write_vectors_at(fd, parts, count, offset, 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    write_vectors_at(fd, parts, count, offset, flags)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev64v2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    write_vectors_at(fd, parts, count, offset, flags)
}

/// Copies inside the kernel would not be seen, so they are refused for recorded files; programs
/// (also the Rust standard library) then copy by reading and writing.
fn is_noted(fd: c_int) -> bool {
    config().is_some_and(|config| class(config, fd) != Class::Other)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_at: *mut off_t,
    to: c_int,
    to_at: *mut off_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    if is_noted(to) {
        return answer(-i64::from(libc::ENOSYS)) as ssize_t;
    }
    answer(system_call!(libc::SYS_copy_file_range, from, from_at, to, to_at, len, flags)) as ssize_t
}

fn send_file(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t {
    if is_noted(to) {
        return answer(-i64::from(libc::EINVAL)) as ssize_t;
    }
    answer(system_call!(libc::SYS_sendfile, to, from, offset, len)) as ssize_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendfile(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t {
    send_file(to, from, offset, len)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t {
    send_file(to, from, offset, len)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn splice(
    from: c_int,
    from_at: *mut off_t,
    to: c_int,
    to_at: *mut off_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    if is_noted(to) {
        return answer(-i64::from(libc::EINVAL)) as ssize_t;
    }
    answer(system_call!(libc::SYS_splice, from, from_at, to, to_at, len, flags)) as ssize_t
}

// ---- sockets -------------------------------------------------------------------------------------

fn send_to(
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const c_void,
    address_len: c_uint,
) -> ssize_t {
    let send = || system_call!(libc::SYS_sendto, fd, data, len, flags, address, address_len);
    answer(config().map_or_else(send, |config| sent(config, &one(data, len), send))) as ssize_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, data: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    send_to(fd, data, len, flags, std::ptr::null(), 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendto(
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const c_void,
    address_len: c_uint,
) -> ssize_t {
    send_to(fd, data, len, flags, address, address_len)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    let send = || system_call!(libc::SYS_sendmsg, fd, message, flags);
    // SAFETY: null, or the message header that the program promises to the function of this name.
    let Some((config, message)) = config().zip(unsafe { message.as_ref() }) else {
        return answer(send()) as ssize_t;
    };
    let parts = vectors(message.msg_iov, c_int::try_from(message.msg_iovlen).unwrap_or(c_int::MAX));
    answer(sent(config, parts, send)) as ssize_t
}

// ---- syncing and lengths -------------------------------------------------------------------------

fn synced(fd: c_int, sync: impl FnOnce() -> i64) -> c_int {
    let Some(config) = config() else { return answer(sync()) as c_int };
    let (inode, path) = match class(config, fd) {
        Class::File { inode, .. } => (inode, None),
        Class::Directory { inode } => (inode, raw::path_of(fd)),
        _ => return answer(sync()) as c_int,
    };
    let flags = if path.is_some() { DIRECTORY } else { 0 };
    let head = Head { inode, flags, ..Head::new(Kind::Sync) };
    let begin = note(config, head, path.as_ref().map_or(&[], |path| path.as_bytes()), &[]);
    let result = config.failure(fd, true).unwrap_or_else(sync);
    note_end(config, begin, result, inode, 0, 0);
    answer(result) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    synced(fd, || system_call!(libc::SYS_fsync, fd))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    synced(fd, || system_call!(libc::SYS_fdatasync, fd))
}

/// Notes a change of a file that is no write around the call that makes it.
fn changed(fd: c_int, head: Head, change: impl FnOnce() -> i64) -> i64 {
    let found = config().map(|config| (config, class(config, fd)));
    let Some((config, Class::File { inode, .. })) = found else { return change() };
    let begin = note(config, Head { inode, ..head }, &[], &[]);
    let result = change();
    note_end(config, begin, result, inode, 0, 0);
    result
}

fn set_length(fd: c_int, len: off_t) -> c_int {
    let head = Head { len: len.cast_unsigned(), ..Head::new(Kind::Truncate) };
    answer(changed(fd, head, || system_call!(libc::SYS_ftruncate, fd, len))) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, len: off_t) -> c_int {
    set_length(fd, len)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, len: off_t) -> c_int {
    set_length(fd, len)
}

fn allocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> i64 {
    let (from, bytes) = (offset.cast_unsigned(), len.cast_unsigned());
    let head = Head { offset: from, len: bytes, result: i64::from(mode), ..Head::new(Kind::Allocate) };
    changed(fd, head, || system_call!(libc::SYS_fallocate, fd, mode, offset, len))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    answer(allocate(fd, mode, offset, len)) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    answer(allocate(fd, mode, offset, len)) as c_int
}

/// Gives the error number itself, not -1.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_fallocate(fd: c_int, offset: off_t, len: off_t) -> c_int {
    -allocate(fd, 0, offset, len) as c_int
}

/// Gives the error number itself, not -1.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_fallocate64(fd: c_int, offset: off_t, len: off_t) -> c_int {
    -allocate(fd, 0, offset, len) as c_int
}

// ---- names ---------------------------------------------------------------------------------------

fn c_str<'a>(path: *const c_char) -> &'a CStr {
    if path.is_null() {
        return c"";
    }
    // SAFETY: the program promises a string with a terminating zero to the function it called.
    unsafe { CStr::from_ptr(path) }
}

/// The absolute path, if it lies below the recorded directory.
fn recorded(config: &Config, directory: c_int, path: *const c_char) -> Option<raw::PathBuffer> {
    let saved = raw::errno();
    let found = resolve(directory, c_str(path)).filter(|path| config.is_recorded(path.as_bytes()));
    raw::set_errno(saved);
    found
}

/// Notes a change of one name around the call that makes it.
fn named(kind: Kind, directory: c_int, path: *const c_char, change: impl FnOnce() -> i64) -> c_int {
    let found = config().and_then(|config| Some((config, recorded(config, directory, path)?)));
    let Some((config, place)) = found else { return answer(change()) as c_int };
    let begin = note(config, Head::new(kind), place.as_bytes(), &[]);
    let result = change();
    note_end(config, begin, result, 0, 0, 0);
    answer(result) as c_int
}

fn rename_at(from_at: c_int, from: *const c_char, to_at: c_int, to: *const c_char, flags: c_uint) -> c_int {
    let rename = || system_call!(libc::SYS_renameat2, from_at, from, to_at, to, flags);
    let Some(config) = config() else { return answer(rename()) as c_int };
    let (Some(mut path), Some(new)) = (recorded(config, from_at, from), recorded(config, to_at, to)) else {
        return answer(rename()) as c_int;
    };
    if !(path.push(b"\0") && path.push(new.as_bytes())) {
        raw::give_up("a path is too long to be recorded");
    }
    let inode = raw::stat_at(from_at, c_str(from)).map_or(0, |stat| stat.st_ino);
    let begin = note(config, Head { inode, ..Head::new(Kind::Rename) }, path.as_bytes(), &[]);
    let result = rename();
    note_end(config, begin, result, inode, 0, 0);
    answer(result) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    rename_at(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat(from_at: c_int, from: *const c_char, to_at: c_int, to: *const c_char) -> c_int {
    rename_at(from_at, from, to_at, to, 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat2(
    from_at: c_int,
    from: *const c_char,
    to_at: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    rename_at(from_at, from, to_at, to, flags)
}

fn remove_at(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    let kind = if flags & libc::AT_REMOVEDIR == 0 { Kind::Remove } else { Kind::RemoveDirectory };
    named(kind, directory, path, || system_call!(libc::SYS_unlinkat, directory, path, flags))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    remove_at(libc::AT_FDCWD, path, 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    remove_at(directory, path, flags)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    remove_at(libc::AT_FDCWD, path, libc::AT_REMOVEDIR)
}

fn make_directory_at(directory: c_int, path: *const c_char, mode: mode_t) -> c_int {
    let make = || system_call!(libc::SYS_mkdirat, directory, path, mode);
    named(Kind::MakeDirectory, directory, path, make)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    make_directory_at(libc::AT_FDCWD, path, mode)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdirat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int {
    make_directory_at(directory, path, mode)
}
