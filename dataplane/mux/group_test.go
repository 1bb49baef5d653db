package mux

import (
	"net/http"
	"strings"
	"testing"
)

// A panic in a part of a request goes on where the request was begun.
func TestGroup(t *testing.T) {
	done := make(chan struct{}, 2)
	for _, tt := range []struct {
		name string
		with any
		want string
	}{
		{"a mistake", "mistake of one", "mistake of one\n\n"},
		{"an answer that broke off", http.ErrAbortHandler, ""},
		{"nothing", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				r := recover()
				if text, ok := r.(string); ok && tt.want != "" {
					if !strings.HasPrefix(text, tt.want) || !strings.Contains(text, "TestGroup") {
						t.Errorf("panic %q, want the stack of where it was", text)
					}
				} else if r != tt.with {
					t.Errorf("panic %v, want %v", r, tt.with)
				}
				if len(done) != 2 {
					t.Errorf("%d other parts are done, want both", len(done))
				}
				<-done
				<-done
			}()
			var g group
			g.run(func() { done <- struct{}{} })
			g.run(func() {
				if tt.with != nil {
					panic(tt.with)
				}
			})
			g.run(func() { done <- struct{}{} })
			g.wait()
		})
	}
}
