// SPDX-License-Identifier: Apache-2.0

// This file lets exec.go declare functions without bodies, which the runtime provides.
