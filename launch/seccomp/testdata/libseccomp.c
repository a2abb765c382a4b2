// SPDX-License-Identifier: Apache-2.0
//
// Compiles a profile with libseccomp, for a test that compares it with ours. On stdin, one per line:
//
//	default RET                          the action of other calls, as the kernel's return value
//	arch NAME                            "x86_64", "x32", "x86", "aarch64", "arm"
//	call NAME                            whose number on each architecture goes to stderr: "ARCH CALL NR"
//	rule RET CALL N [INDEX OP A B]...    with N conditions; OP is libseccomp's number
//
// It writes the filter to stdout.
#include <errno.h>
#include <inttypes.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int rc, const char *what) {
	if (rc < 0) {
		fprintf(stdout, "%s: %s\n", what, strerror(-rc));
		exit(1);
	}
}

int main(void) {
	char line[4096], name[64];
	char archs[8][64];
	int n_archs = 0;
	uint32_t ret;
	scmp_filter_ctx ctx = NULL;

	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "default %" SCNx32, &ret) == 1) {
			ctx = seccomp_init(ret);
			check(ctx ? seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) : -ENOMEM, "init");
			check(seccomp_arch_remove(ctx, SCMP_ARCH_NATIVE), "remove native architecture");
		} else if (sscanf(line, "arch %63s", name) == 1) {
			check(seccomp_arch_add(ctx, seccomp_arch_resolve_name(name)), name);
			strcpy(archs[n_archs++], name);
		} else if (sscanf(line, "call %63s", name) == 1) {
			for (int i = 0; i < n_archs; i++)
				fprintf(stderr, "%s %s %d\n", archs[i], name, seccomp_syscall_resolve_name_arch(seccomp_arch_resolve_name(archs[i]), name));
		} else {
			struct scmp_arg_cmp args[6];
			int n = 0, used = 0;
			char *p = line;
			if (sscanf(p, "rule %" SCNx32 " %63s %d%n", &ret, name, &n, &used) != 3 || n > 6)
				check(-EINVAL, line);
			for (int i = 0; i < n; i++) {
				unsigned op;
				p += used;
				if (sscanf(p, "%u %u %" SCNx64 " %" SCNx64 "%n", &args[i].arg, &op, &args[i].datum_a, &args[i].datum_b, &used) != 4)
					check(-EINVAL, line);
				args[i].op = op;
			}
			int nr = seccomp_syscall_resolve_name(name);
			if (nr != __NR_SCMP_ERROR)
				check(seccomp_rule_add_array(ctx, ret, nr, n, args), line);
		}
	}
	check(seccomp_export_bpf(ctx, 1), "export");
	return 0;
}
