// SPDX-License-Identifier: Apache-2.0

// Package pump moves a process's output to its log, exactly once, whatever is killed when, and to whoever looks on.
//
// A Pump belongs to one process. One worker at a time moves its output, so its two streams, which share the log, are written in turn:
//
//	FIFO ──splice──▶ spool ──read──▶ lines ──pwrite──▶ log
//
// The spool is a file on tmpfs. The position (Progress) is two halves in shared memory, of which an atomic counter says which is in force. For
// stream s, with size(s) the size of its spool, and P the position in force:
//
//	I1  consumed(s) = size(s)           the kernel moves a byte from pipe to spool as one step; a kill falls before or after
//	I2  P.spool[s] ≤ size(s)            what lies between has been consumed and is not yet in the log
//	I3  P.mode = 0   ⇒  log[0, P.log) = F(spool[0, P.spool))    and nothing after P.log counts
//	I4  P.mode = 1+s ⇒  a write of F(spool(s)[P.spool[s], P.end), P.time) to offset P.log may have begun
//	I5  holes are punched only below P.spool[s]
//
// F, the formatting, is a function of its arguments, the time among them; that is why the time is in the position before the lines are
// made (I4). A pump that finds P.mode ≠ 0 does the same write again: the same bytes to the same place. Then it sets log and spool[s] and mode in one
// step (I3). So each byte is in the log exactly once. Reopening sets gen and log in one step between writes, after the other keeper
// has the new file and before it loses the old one.
//
// What a pump needs of whoever has the process is an Owner: which file is the log, and to be told of the end. It knows nothing of the
// process itself, or of the pair.
//
// An idle stream costs an entry in an epoll set and 128 bytes of state: no goroutine, no buffer, no page of spool.
package pump
