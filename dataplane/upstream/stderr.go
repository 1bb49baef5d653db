package upstream

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	stderrLine = 4 << 10 // of a line that is logged
	logBurst   = 100     // lines at once
	logRate    = 20      // lines a second after that
)

// allowance bounds what a target can make the log say. The zero value is full. It is safe for concurrent use.
type allowance struct {
	mu      sync.Mutex // guards what is below
	spent   float64
	last    time.Time
	dropped int
}

// take reports whether one more line may be logged, and how many were not since the last that was.
func (a *allowance) take() (dropped int, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	a.spent = max(0, a.spent-now.Sub(a.last).Seconds()*logRate)
	a.last = now
	if a.spent > logBurst-1 {
		a.dropped++
		return 0, false
	}
	a.spent++
	dropped, a.dropped = a.dropped, 0
	return dropped, true
}

// logLines logs what a child writes to stderr, line by line, to its end. Long lines are cut, and what comes faster
// than a log can be read is counted instead; all of it is read, so that a chatty child never waits.
func logLines(r io.Reader, log *slog.Logger) {
	in := bufio.NewReaderSize(r, stderrLine)
	var lines allowance
	for {
		line, cut, err := logLine(in)
		if line != "" {
			if dropped, ok := lines.take(); ok {
				attrs := []slog.Attr{slog.String("line", line)}
				if cut {
					attrs = append(attrs, slog.Bool("cut", true))
				}
				if dropped > 0 {
					attrs = append(attrs, slog.Int("dropped", dropped))
				}
				log.LogAttrs(context.Background(), slog.LevelInfo, "stdio process wrote to stderr", attrs...)
			}
		}
		if err != nil {
			if lines.dropped > 0 {
				log.Info("stdio process wrote too much to stderr", "dropped", lines.dropped)
			}
			return
		}
	}
}

// logLine reads a line, and of a long one its beginning.
func logLine(in *bufio.Reader) (line string, cut bool, err error) {
	part, err := in.ReadSlice('\n')
	line = strings.ToValidUTF8(string(bytes.TrimSpace(part)), "\uFFFD")
	for err == bufio.ErrBufferFull {
		cut = true
		_, err = in.ReadSlice('\n')
	}
	return line, cut, err
}
