package upstream

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"time"
)

const (
	stderrLine  = 4 << 10 // of a line that is logged
	stderrBurst = 100     // lines at once
	stderrRate  = 20      // lines a second after that
)

// logLines logs what a child writes to stderr, line by line, to its end. Long lines are cut, and what comes faster
// than a log can be read is counted instead; all of it is read, so that a chatty child never waits.
func logLines(r io.Reader, log *slog.Logger) {
	in := bufio.NewReaderSize(r, stderrLine)
	allowance, last, dropped := float64(stderrBurst), time.Now(), 0
	for {
		line, cut, err := logLine(in)
		if line != "" {
			now := time.Now()
			allowance = min(stderrBurst, allowance+now.Sub(last).Seconds()*stderrRate)
			last = now
			switch {
			case allowance < 1:
				dropped++
			default:
				allowance--
				attrs := []slog.Attr{slog.String("line", line)}
				if cut {
					attrs = append(attrs, slog.Bool("cut", true))
				}
				if dropped > 0 {
					attrs = append(attrs, slog.Int("dropped", dropped))
					dropped = 0
				}
				log.LogAttrs(context.Background(), slog.LevelInfo, "stdio process wrote to stderr", attrs...)
			}
		}
		if err != nil {
			if dropped > 0 {
				log.Info("stdio process wrote too much to stderr", "dropped", dropped)
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
