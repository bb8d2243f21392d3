// A handler with net/http and encoding/json, which takes keys for equal whatever their case.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
)

type payload struct {
	Organization *struct {
		GithubLogin *string `json:"githubLogin"`
	} `json:"organization"`
	ProjectName     *string `json:"projectName"`
	EnvironmentName *string `json:"environmentName"`
	TagName         *string `json:"tagName"`
	Action          *string `json:"action"`
	Revision        *int64  `json:"revision"`
}

var (
	lock   sync.Mutex
	output = json.NewEncoder(os.Stdout)
)

func say(what map[string]any) {
	lock.Lock()
	defer lock.Unlock()
	if err := output.Encode(what); err != nil {
		os.Exit(1)
	}
}

func read(body []byte) map[string]any {
	var found payload
	if err := json.Unmarshal(body, &found); err != nil {
		return map[string]any{"error": err.Error()}
	}
	var organization *string
	if found.Organization != nil {
		organization = found.Organization.GithubLogin
	}
	return map[string]any{
		"organization": organization,
		"project":      found.ProjectName,
		"environment":  found.EnvironmentName,
		"tag":          found.TagName,
		"action":       found.Action,
		"revision":     found.Revision,
	}
}

func hook(response http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		say(map[string]any{"method": request.Method, "target": request.RequestURI, "unread": err.Error()})
		return
	}
	headers := [][2]string{{"host", request.Host}}
	for name, values := range request.Header {
		for _, value := range values {
			headers = append(headers, [2]string{strings.ToLower(name), value})
		}
	}
	sum := sha256.Sum256(body)
	say(map[string]any{
		"method": request.Method, "target": request.RequestURI, "headers": headers,
		"size": len(body), "sha256": hex.EncodeToString(sum[:]), "read": read(body),
	})
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	say(map[string]any{"port": listener.Addr().(*net.TCPAddr).Port})
	// No ServeMux: it would redirect paths that it finds odd.
	panic(http.Serve(listener, http.HandlerFunc(hook)))
}
