//go:build linux

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Environment of a process that is the floor.
const (
	floorAddr = "CONNECTED_REGISTRY_BENCH_FLOOR"
	floorDir  = floorAddr + "_DIR"
	floorSync = floorAddr + "_SYNC"
	floorCert = floorAddr + "_CERT"
	floorKey  = floorAddr + "_KEY"
)

// floor is the least that a registry in Go does: net/http, files named by digest and sent by sendfile, manifests in a
// map. It checks digests; it has no index, no limits, no rights and no recovery.
type floor struct {
	dir     string
	durable bool // file and directory are synced, as what is acknowledged has to be

	mu        sync.RWMutex
	manifests map[string]document // repository/tag and repository/digest
	uploads   map[string]*upload
	next      int
}

type document struct {
	media, digest string
	body          []byte
}

type upload struct {
	file *os.File
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	size int64
}

func serveFloor(addr string) error {
	f := &floor{dir: os.Getenv(floorDir), durable: os.Getenv(floorSync) != "", manifests: map[string]document{}, uploads: map[string]*upload{}}
	server := &http.Server{Addr: addr, Handler: f, ReadHeaderTimeout: 10 * time.Second}
	if cert := os.Getenv(floorCert); cert != "" {
		return server.ListenAndServeTLS(cert, os.Getenv(floorKey))
	}
	return server.ListenAndServe()
}

func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	repo, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
	if rest != "" {
		f.manifest(w, r, repo, rest)
		return
	}
	repo, rest, _ = strings.Cut(repo, "/blobs/")
	if id, ok := strings.CutPrefix(rest, "uploads/"); ok {
		if err := f.upload(w, r, repo, id); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
		return
	}
	if rest == "" {
		return // 200 of /v2/
	}
	file, err := os.Open(filepath.Join(f.dir, filepath.Base(rest)))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", rest)
	http.ServeContent(w, r, "", time.Time{}, file)
}

func (f *floor) manifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
	if r.Method == http.MethodPut {
		body, err := io.ReadAll(r.Body)
		sum := sha256.Sum256(body)
		m := document{r.Header.Get("Content-Type"), "sha256:" + hex.EncodeToString(sum[:]), body}
		if err == nil && f.durable {
			err = f.save(m.digest, body)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		f.mu.Lock()
		f.manifests[repo+"/"+ref], f.manifests[repo+"/"+m.digest] = m, m
		f.mu.Unlock()
		w.Header().Set("Docker-Content-Digest", m.digest)
		w.WriteHeader(http.StatusCreated)
		return
	}
	f.mu.RLock()
	m, ok := f.manifests[repo+"/"+ref]
	f.mu.RUnlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", m.media)
	w.Header().Set("Docker-Content-Digest", m.digest)
	w.Header().Set("Content-Length", strconv.Itoa(len(m.body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(m.body)
	}
}

// save keeps a small file as a durable server has to: file synced, renamed, directory synced.
func (f *floor) save(name string, body []byte) error {
	file, err := os.CreateTemp(f.dir, "new-")
	if err != nil {
		return err
	}
	_, err = file.Write(body)
	return errors.Join(err, f.commit(file, name))
}

// commit gives a file its name and closes it.
func (f *floor) commit(file *os.File, name string) error {
	var err error
	if f.durable {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close(), os.Rename(file.Name(), filepath.Join(f.dir, name)))
	if err != nil || !f.durable {
		return err
	}
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// upload takes POST, PATCH and PUT.
func (f *floor) upload(w http.ResponseWriter, r *http.Request, repo, id string) error {
	if r.Method == http.MethodPost {
		file, err := os.CreateTemp(f.dir, "up-")
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.next++
		id = strconv.Itoa(f.next)
		f.uploads[id] = &upload{file: file, hash: sha256.New()}
		f.mu.Unlock()
		w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	f.mu.RLock()
	u := f.uploads[id]
	f.mu.RUnlock()
	if u == nil {
		return fmt.Errorf("no upload %s", id)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(u.file, u.hash)}, r.Body, make([]byte, 256<<10))
	u.size += n
	if err != nil {
		return err
	}
	w.Header().Set("Location", r.URL.Path)
	if r.Method == http.MethodPatch {
		w.Header().Set("Range", fmt.Sprintf("0-%d", u.size-1))
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	f.mu.Lock()
	delete(f.uploads, id)
	f.mu.Unlock()
	want := r.URL.Query().Get("digest")
	if got := "sha256:" + hex.EncodeToString(u.hash.Sum(nil)); got != want {
		return errors.Join(fmt.Errorf("digest %s, want %s", got, want), u.file.Close(), os.Remove(u.file.Name()))
	}
	if err := f.commit(u.file, filepath.Base(want)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}
