// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const masterTitle = "nginx: master process"

// nginx behaves like it where a conformance suite looks: its title, its pid file, its logs and its page.
func nginx(args []string) error {
	if !strings.HasPrefix(os.Args[0], masterTitle) {
		argv := append([]string{masterTitle + " nginx"}, args...)
		return syscall.Exec("/proc/self/exe", argv, os.Environ())
	}
	if err := os.MkdirAll("/var/run", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/var/run/nginx.pid", fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
		return err
	}
	port := "80"
	if text, err := os.ReadFile("/etc/nginx/port"); err == nil {
		port = strings.TrimSpace(string(text))
	}
	fmt.Fprintln(os.Stderr, "[notice] start worker processes")
	return serve(":"+port, "<html><title>Welcome to nginx!</title></html>\n")
}

func httpd([]string) error {
	fmt.Fprintln(os.Stderr, "AH00094: Command line: 'httpd -D FOREGROUND'")
	return serve(":80", "<html><body><h1>It works!</h1></body></html>\n")
}

// serveHTTP: probe http ADDRESS TEXT
func serveHTTP(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: http ADDRESS TEXT")
	}
	return serve(args[0], args[1]+"\n")
}

// serve answers every request with the page, and / paths that a test needs; access goes to stdout, as nginx' image does.
func serve(address, page string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s - - [%s] \"%s %s %s\" 200\n", r.RemoteAddr, time.Now().Format("02/Jan/2006:15:04:05 -0700"), r.Method, r.URL.Path, r.Proto)
		fmt.Fprint(w, page)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat("/tmp/unhealthy"); err == nil {
			http.Error(w, "unhealthy", http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/remote", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	served := make(chan error, 1)
	go func() { served <- http.Serve(l, mux) }()
	select {
	case err := <-served:
		return err
	case <-stop:
		return l.Close()
	}
}

// wget prints the body of a URL; every option but -T SECONDS is ignored.
func wget(args []string) error {
	flags := flag.NewFlagSet("wget", flag.ContinueOnError)
	timeout := flags.Int("T", 10, "seconds")
	flags.Bool("q", false, "ignored")
	flags.String("O", "-", "ignored")
	flags.Bool("qO-", false, "ignored")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client := http.Client{Timeout: time.Duration(*timeout) * time.Second}
	resp, err := client.Get(flags.Arg(0))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("server answered %s", resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// echo: probe echo ADDRESS; it gives back what a client sends, and closes when the client has closed its sending side.
func echo(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: echo ADDRESS")
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Println("listening on", l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}
