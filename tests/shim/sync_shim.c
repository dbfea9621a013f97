/* LD_PRELOAD shim: remembers what a process made durable, so that a power cut can be played afterwards.
 *
 * kill -9 keeps the page cache, so it cannot show a missing fsync. This shim keeps an undo log of every
 * change to regular files below SYNC_SHIM_ROOT: what a write overwrote, how long the file was, which names
 * were made, renamed and removed, and which file or directory was synced when. After the process is dead,
 * tests/src/power_cut.rs takes back whatever was never synced (but for a random part of it).
 *
 * Always holds: a record is in the log before the change is made; one lock orders records and changes; the log
 * is written with plain write(2), so it survives kill -9 like any other page of the cache.
 * Does not: see raw system calls (rustix), io_uring or memory maps. A shared writable map and the calls that
 * move bytes inside the kernel are recorded as ODD, and the reader of the log refuses to judge such a run.
 *
 * Environment: SYNC_SHIM_ROOT (directory that is watched, absolute), SYNC_SHIM_STATE (directory for the
 * log and for the graveyard of removed files; on the same file system), SYNC_SHIM_IGNORE_FSYNC=1 (fsync and
 * its like return 0 and do nothing: a missing fsync, planted without touching the program).
 *
 * Records are little-endian, as the machine: 48 bytes of head, then `payload` bytes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { CREATE = 1, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, ODD };

struct record {
    uint32_t magic;
    uint32_t kind;
    uint64_t ino;      /* of the file changed or synced; for names: of the file that the name stood for */
    uint64_t at;       /* WRITE: offset. SYNC: records below this place of the log are covered. RENAME, UNLINK: grave number, 0 = none */
    uint64_t len;      /* WRITE: bytes. TRUNCATE: new length */
    uint64_t old_size; /* WRITE, TRUNCATE: length before. WRITE with len above payload: what is missing was zeros */
    uint64_t payload;
};
#define MAGIC 0x314d4853u /* "SHM1" */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], state[PATH_MAX];
static size_t root_len;
static int log_fd = -1, ignore_sync;
static uint64_t log_pos, graves;

/* Inodes below the root that were opened by name. Never shrinks: bounded by the files of one process life. */
#define TABLE (1u << 17)
static uint64_t known[TABLE];
static dev_t root_dev;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_truncate)(const char *, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_mkdirat)(int, const char *, mode_t);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static int (*real_fallocate)(int, int, off_t, off_t);
static ssize_t (*real_copy_file_range)(int, off_t *, int, off_t *, size_t, unsigned);
static ssize_t (*real_sendfile)(int, int, off_t *, size_t);

static void die(const char *why) {
    dprintf(2, "sync_shim: %s: %s\n", why, strerror(errno));
    _exit(70);
}

__attribute__((constructor)) static void start(void) {
    real_open = dlsym(RTLD_NEXT, "open");
    real_openat = dlsym(RTLD_NEXT, "openat");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_pwritev = dlsym(RTLD_NEXT, "pwritev");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_truncate = dlsym(RTLD_NEXT, "truncate");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_renameat = dlsym(RTLD_NEXT, "renameat");
    real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
    real_mkdirat = dlsym(RTLD_NEXT, "mkdirat");
    real_mmap = dlsym(RTLD_NEXT, "mmap");
    real_fallocate = dlsym(RTLD_NEXT, "fallocate");
    real_copy_file_range = dlsym(RTLD_NEXT, "copy_file_range");
    real_sendfile = dlsym(RTLD_NEXT, "sendfile");

    const char *r = getenv("SYNC_SHIM_ROOT"), *s = getenv("SYNC_SHIM_STATE"), *lie = getenv("SYNC_SHIM_IGNORE_FSYNC");
    if (r == NULL || s == NULL || r[0] != '/' || s[0] != '/' || strlen(r) >= PATH_MAX - 1 || strlen(s) >= PATH_MAX - 64)
        return; /* loaded without being asked for: pass everything through */
    char path[PATH_MAX];
    struct stat st;
    if (realpath(r, root) == NULL || stat(root, &st) != 0)
        die("SYNC_SHIM_ROOT");
    root_len = strlen(root);
    root_dev = st.st_dev;
    strcpy(state, s);
    ignore_sync = lie != NULL && lie[0] == '1';
    snprintf(path, sizeof path, "%s/log", state);
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        die("cannot open the log");
    /* Out of the way of a program that closes low numbers. */
    int high = fcntl(log_fd, F_DUPFD_CLOEXEC, 900);
    if (high >= 0) {
        syscall(SYS_close, log_fd);
        log_fd = high;
    }
}

static void append(enum kind kind, uint64_t ino, uint64_t at, uint64_t len, uint64_t old_size, const void *payload, size_t n) {
    struct record head = {MAGIC, kind, ino, at, len, old_size, n};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)payload, n}};
    if (syscall(SYS_writev, log_fd, parts, n ? 2 : 1) != (long)(sizeof head + n))
        die("cannot write the log");
    log_pos += sizeof head + n;
}

/* The absolute path of `path` (relative to `dir`) without its last name resolved, when it is below the root. */
static int below_root(int dir, const char *path, char out[PATH_MAX]) {
    if (log_fd < 0 || path == NULL)
        return 0;
    char parent[PATH_MAX];
    size_t n = 0;
    if (path[0] != '/') {
        if (dir == AT_FDCWD) {
            if (getcwd(parent, sizeof parent) == NULL)
                return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            ssize_t got = readlink(link, parent, sizeof parent - 1);
            if (got < 0)
                return 0;
            parent[got] = 0;
        }
        n = strlen(parent);
        if (n + 1 >= sizeof parent)
            return 0;
        parent[n++] = '/';
    }
    if (n + strlen(path) >= sizeof parent)
        return 0;
    strcpy(parent + n, path);
    char *name = strrchr(parent, '/');
    if (name == NULL)
        return 0;
    char last[NAME_MAX + 1];
    if (strlen(name + 1) > NAME_MAX)
        return 0;
    strcpy(last, name + 1);
    if (name == parent)
        name[1] = 0;
    else
        *name = 0;
    char real[PATH_MAX];
    if (realpath(parent, real) == NULL)
        return 0;
    if (strlen(real) + 1 + strlen(last) >= PATH_MAX)
        return 0;
    int wrote = last[0] ? snprintf(out, PATH_MAX, "%s/%s", real, last) : snprintf(out, PATH_MAX, "%s", real);
    if (wrote < 0 || wrote >= PATH_MAX)
        return 0;
    return strncmp(out, root, root_len) == 0 && (out[root_len] == '/' || out[root_len] == 0);
}

static uint32_t slot_of(uint64_t ino) {
    return (uint32_t)((ino * 0x9e3779b97f4a7c15ull) >> 47) & (TABLE - 1);
}

static void remember(uint64_t ino) {
    for (uint32_t i = slot_of(ino), n = 0; n < TABLE; i = (i + 1) & (TABLE - 1), n++) {
        if (known[i] == ino)
            return;
        if (known[i] == 0) {
            known[i] = ino;
            return;
        }
    }
    errno = ENFILE;
    die("more files than the table holds");
}

/* Whether `fd` is a file of ours; fills `st`. Inode and device decide, so dup and fcntl need no hooks. */
static int watched(int fd, struct stat *st) {
    if (log_fd < 0 || fd == log_fd || fstat(fd, st) != 0)
        return 0;
    if (st->st_dev != root_dev || !(S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)))
        return 0;
    for (uint32_t i = slot_of(st->st_ino), n = 0; n < TABLE; i = (i + 1) & (TABLE - 1), n++) {
        if (known[i] == st->st_ino)
            return 1;
        if (known[i] == 0)
            return 0;
    }
    return 0;
}

/* Logs what the bytes [at, at + len) of the file were. Zeros (a file grown ahead of its content) cost no payload. */
static void log_overwrite(int fd, const struct stat *st, uint64_t at, uint64_t len, enum kind kind) {
    uint64_t size = (uint64_t)st->st_size, from = at, to = kind == TRUNCATE ? size : at + len;
    size_t have = 0;
    char *old = NULL;
    if (to > size)
        to = size;
    if (from < to) {
        old = malloc(to - from);
        if (old == NULL)
            die("no memory for what is overwritten");
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int reader = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0); /* fd may be write-only */
        if (reader < 0)
            die("cannot read what is overwritten");
        while (have < to - from) {
            ssize_t got = pread(reader, old + have, to - from - have, (off_t)(from + have));
            if (got <= 0)
                break;
            have += (size_t)got;
        }
        syscall(SYS_close, reader);
        while (have > 0 && old[have - 1] == 0)
            have--;
    }
    append(kind, st->st_ino, at, len, size, old, have);
    free(old);
}

static void grave_of(uint64_t number, char out[PATH_MAX]) {
    if (snprintf(out, PATH_MAX, "%s/grave-%llu", state, (unsigned long long)number) >= PATH_MAX)
        die("state path too long");
}

/* Keeps the file behind `path` alive under a number, so that its removal can be taken back. */
static uint64_t bury(const char *path) {
    char grave[PATH_MAX];
    grave_of(++graves, grave);
    return linkat(AT_FDCWD, path, AT_FDCWD, grave, 0) == 0 ? graves : 0;
}

/* ---- opening and names ---- */

static int open_any(int dir, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    if (!below_root(dir, path, full))
        return real_openat(dir, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before;
    int existed = fstatat(dir, path, &before, 0) == 0;
    if (existed && (flags & O_TRUNC) && S_ISREG(before.st_mode) && before.st_size > 0) {
        remember(before.st_ino);
        int reader = (int)syscall(SYS_openat, dir, path, O_RDONLY | O_CLOEXEC, 0);
        if (reader >= 0) {
            log_overwrite(reader, &before, 0, 0, TRUNCATE);
            syscall(SYS_close, reader);
        }
    }
    int fd = real_openat(dir, path, flags, mode);
    int saved = errno;
    struct stat st;
    if (fd >= 0 && fstat(fd, &st) == 0) {
        remember(st.st_ino);
        if (!existed && (flags & O_CREAT))
            append(CREATE, st.st_ino, 0, 0, 0, full, strlen(full));
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return fd;
}

#define MODE_ARG(flags, mode)                                     \
    mode_t mode = 0;                                              \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {       \
        va_list args;                                             \
        va_start(args, flags);                                    \
        mode = va_arg(args, mode_t);                              \
        va_end(args);                                             \
    }

int open(const char *path, int flags, ...) {
    MODE_ARG(flags, mode)
    return open_any(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE_ARG(flags, mode)
    return open_any(AT_FDCWD, path, flags, mode);
}
int openat(int dir, const char *path, int flags, ...) {
    MODE_ARG(flags, mode)
    return open_any(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    MODE_ARG(flags, mode)
    return open_any(dir, path, flags, mode);
}
int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    char full_from[PATH_MAX], full_to[PATH_MAX];
    int in_from = below_root(from_dir, from, full_from), in_to = below_root(to_dir, to, full_to);
    if (!in_from && !in_to)
        return real_renameat(from_dir, from, to_dir, to);
    pthread_mutex_lock(&lock);
    struct stat st;
    if (!in_from || !in_to) {
        append(ODD, 0, 0, 0, 0, "rename across the root", 22);
    } else if (fstatat(AT_FDCWD, full_from, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        char both[2 * PATH_MAX];
        size_t n = strlen(full_from) + 1;
        memcpy(both, full_from, n);
        strcpy(both + n, full_to);
        remember(st.st_ino);
        append(RENAME, st.st_ino, bury(full_to), 0, 0, both, n + strlen(full_to));
    }
    int rc = real_renameat(from_dir, from, to_dir, to);
    int saved = errno;
    if (rc != 0)
        append(ODD, 0, 0, 0, 0, "rename failed", 13);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return rc;
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int unlinkat(int dir, const char *path, int flags) {
    char full[PATH_MAX];
    if ((flags & AT_REMOVEDIR) || !below_root(dir, path, full))
        return real_unlinkat(dir, path, flags);
    pthread_mutex_lock(&lock);
    struct stat st;
    int there = fstatat(AT_FDCWD, full, &st, AT_SYMLINK_NOFOLLOW) == 0;
    if (there)
        append(UNLINK, st.st_ino, bury(full), 0, 0, full, strlen(full));
    int rc = real_unlinkat(dir, path, flags);
    int saved = errno;
    if (there && rc != 0)
        append(ODD, 0, 0, 0, 0, "unlink failed", 13);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return rc;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

/* An empty directory that comes back or goes is no danger: noted for people who read the log, not taken back. */
int mkdirat(int dir, const char *path, mode_t mode) {
    char full[PATH_MAX];
    int rc = real_mkdirat(dir, path, mode), saved = errno;
    if (rc == 0 && below_root(dir, path, full)) {
        struct stat st;
        pthread_mutex_lock(&lock);
        if (fstatat(AT_FDCWD, full, &st, 0) == 0) {
            remember(st.st_ino);
            append(MKDIR, st.st_ino, 0, 0, 0, full, strlen(full));
        }
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
    return rc;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* ---- content ---- */

/* Where write(2) would put the bytes. */
static uint64_t place(int fd, const struct stat *st) {
    if (fcntl(fd, F_GETFL) & O_APPEND)
        return (uint64_t)st->st_size;
    off_t at = lseek(fd, 0, SEEK_CUR);
    return at < 0 ? 0 : (uint64_t)at;
}

static size_t total(const struct iovec *parts, int n) {
    size_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += parts[i].iov_len;
    return sum;
}

/* A cheap look without the lock lets sockets and pipes pass; files of ours are looked at again under it. */
#define CHANGE(fd, at_expr, len_expr, call)              \
    struct stat st;                                      \
    if (!watched(fd, &st) || !S_ISREG(st.st_mode))       \
        return call;                                     \
    pthread_mutex_lock(&lock);                           \
    if (fstat(fd, &st) == 0)                             \
        log_overwrite(fd, &st, at_expr, len_expr, WRITE); \
    ssize_t rc = call;                                   \
    int saved = errno;                                   \
    pthread_mutex_unlock(&lock);                         \
    errno = saved;                                       \
    return rc;

ssize_t write(int fd, const void *data, size_t n) { CHANGE(fd, place(fd, &st), n, real_write(fd, data, n)) }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { CHANGE(fd, (uint64_t)at, n, real_pwrite(fd, data, n, at)) }
ssize_t pwrite64(int fd, const void *data, size_t n, off_t at) { return pwrite(fd, data, n, at); }
ssize_t writev(int fd, const struct iovec *parts, int n) { CHANGE(fd, place(fd, &st), total(parts, n), real_writev(fd, parts, n)) }
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    CHANGE(fd, (uint64_t)at, total(parts, n), real_pwritev(fd, parts, n, at))
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t at) { return pwritev(fd, parts, n, at); }

int ftruncate(int fd, off_t len) {
    struct stat st;
    if (!watched(fd, &st))
        return real_ftruncate(fd, len);
    pthread_mutex_lock(&lock);
    if (fstat(fd, &st) == 0)
        log_overwrite(fd, &st, (uint64_t)len, (uint64_t)len, TRUNCATE);
    int rc = real_ftruncate(fd, len), saved = errno;
    pthread_mutex_unlock(&lock);
    errno = saved;
    return rc;
}
int ftruncate64(int fd, off_t len) { return ftruncate(fd, len); }

static void odd(int fd, const char *what) {
    struct stat st;
    if (!watched(fd, &st) || !S_ISREG(st.st_mode))
        return;
    pthread_mutex_lock(&lock);
    append(ODD, st.st_ino, 0, 0, 0, what, strlen(what));
    pthread_mutex_unlock(&lock);
}

int truncate(const char *path, off_t len) {
    char full[PATH_MAX];
    if (below_root(AT_FDCWD, path, full)) {
        int fd = open(path, O_WRONLY);
        if (fd < 0)
            return -1;
        int rc = ftruncate(fd, len), saved = errno;
        close(fd);
        errno = saved;
        return rc;
    }
    return real_truncate(path, len);
}
int truncate64(const char *path, off_t len) { return truncate(path, len); }

int fallocate(int fd, int mode, off_t at, off_t len) {
    odd(fd, "fallocate");
    return real_fallocate(fd, mode, at, len);
}
int fallocate64(int fd, int mode, off_t at, off_t len) { return fallocate(fd, mode, at, len); }
int posix_fallocate(int fd, off_t at, off_t len) { return fallocate(fd, 0, at, len) == 0 ? 0 : errno; }
int posix_fallocate64(int fd, off_t at, off_t len) { return posix_fallocate(fd, at, len); }

ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags) {
    odd(out, "copy_file_range");
    return real_copy_file_range(in, in_at, out, out_at, n, flags);
}
ssize_t sendfile(int out, int in, off_t *at, size_t n) {
    odd(out, "sendfile");
    return real_sendfile(out, in, at, n);
}
ssize_t sendfile64(int out, int in, off_t *at, size_t n) { return sendfile(out, in, at, n); }

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t at) {
    if (fd >= 0 && log_fd >= 0 && (prot & PROT_WRITE) && (flags & MAP_SHARED))
        odd(fd, "shared writable mmap");
    if (real_mmap == NULL)
        return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, at);
    return real_mmap(addr, len, prot, flags, fd, at);
}
void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t at) { return mmap(addr, len, prot, flags, fd, at); }

/* ---- sync ---- */

static int sync_any(int fd, int (*real)(int)) {
    struct stat st;
    if (!watched(fd, &st))
        return real(fd);
    if (ignore_sync)
        return 0;
    /* Whatever was written before this moment is covered; what comes while the disk works is not. */
    pthread_mutex_lock(&lock);
    uint64_t covered = log_pos;
    pthread_mutex_unlock(&lock);
    int rc = real(fd);
    int saved = errno;
    if (rc == 0) {
        pthread_mutex_lock(&lock);
        append(SYNC, st.st_ino, covered, 0, 0, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
    return rc;
}
int fsync(int fd) { return sync_any(fd, real_fsync); }
int fdatasync(int fd) { return sync_any(fd, real_fdatasync); }
/* sync_file_range promises nothing after a power cut, so it is passed through and counts for nothing. */
