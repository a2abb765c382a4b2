// SPDX-License-Identifier: Apache-2.0

package main

const sysKeyctl = 250
