// SPDX-License-Identifier: Apache-2.0

// This file lets memory.go declare a function without a body, which the runtime provides.
