/* LD_PRELOAD shim: gives a process a wall clock of its own, which jumps and runs wrongly when it is told to.
 *
 * The file CLOCK_SHIM_FILE (absolute path, at least 32 bytes) is mapped and read at each question; tests/src/clock.rs writes it.
 *
 * Always holds: monotonic clocks are true, so waits last as long as they should; a wall clock that is being changed is read
 * before or after the change, never in the middle of it.
 * Does not: change what the kernel does at a time of the wall clock (timerfd, clock_nanosleep or pthread_cond_timedwait with
 * CLOCK_REALTIME), the times of files, or clocks that are read by raw system calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ll

struct setting {
    uint64_t version;  /* odd while the rest is being written */
    int64_t ahead_ns;  /* of the true clock, at `since_ns` */
    int64_t drift_ppm; /* how much it gains since then */
    int64_t since_ns;  /* CLOCK_MONOTONIC */
};

static const struct setting *setting;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void start(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("CLOCK_SHIM_FILE");
    if (path == NULL || path[0] != '/')
        return; /* loaded without being asked for */
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    void *map = MAP_FAILED;
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size >= (off_t)sizeof *setting)
        map = mmap(NULL, sizeof *setting, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        dprintf(2, "clock_shim: cannot map %s\n", path);
        _exit(70);
    }
    close(fd);
    setting = map;
}

static int ask(clockid_t clock, struct timespec *out) {
    /* Somebody asks before the constructor has run. */
    return real_clock_gettime != NULL ? real_clock_gettime(clock, out) : (int)syscall(SYS_clock_gettime, clock, out);
}

static int64_t ns(const struct timespec *at) { return (int64_t)at->tv_sec * SECOND + at->tv_nsec; }

/* How far the wall clock is ahead now. */
static int64_t ahead(void) {
    if (setting == NULL)
        return 0;
    struct setting seen;
    uint64_t version;
    do {
        version = __atomic_load_n(&setting->version, __ATOMIC_ACQUIRE);
        seen.ahead_ns = __atomic_load_n(&setting->ahead_ns, __ATOMIC_RELAXED);
        seen.drift_ppm = __atomic_load_n(&setting->drift_ppm, __ATOMIC_RELAXED);
        seen.since_ns = __atomic_load_n(&setting->since_ns, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while ((version & 1) != 0 || version != __atomic_load_n(&setting->version, __ATOMIC_RELAXED));
    struct timespec now;
    if (seen.drift_ppm == 0 || ask(CLOCK_MONOTONIC, &now) != 0)
        return seen.ahead_ns;
    return seen.ahead_ns + (ns(&now) - seen.since_ns) / 1000000 * seen.drift_ppm;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    int rc = ask(clock, out);
    if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI)) {
        int64_t at = ns(out) + ahead();
        if (at < 0)
            at = 0;
        out->tv_sec = (time_t)(at / SECOND);
        out->tv_nsec = (long)(at % SECOND);
    }
    return rc;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    (void)zone; /* obsolete; nobody here asks for it */
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0)
        return -1;
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0)
        return -1;
    if (out != NULL)
        *out = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *out, int base) {
    if (base != TIME_UTC || clock_gettime(CLOCK_REALTIME, out) != 0)
        return 0;
    return base;
}
