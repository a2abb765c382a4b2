// SPDX-License-Identifier: Apache-2.0

// This file lets zygote.go declare functions without bodies, which the runtime provides.
