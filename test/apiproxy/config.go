package apiproxy

import (
	"bytes"
	"os"
	"text/template"
	"time"
)

// configuration is nginx's. Where it follows the stock proxy in something that looks odd, the comment says so, since
// that is what a layer has to live with.
var configuration = template.Must(template.New("nginx.conf").Parse(`
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log info;
{{if .Root}}user root;{{end}}
events {}

http {
	# One line for each request: what came in, where it went, what went out.
	log_format hop escape=json
		'{"method":"$request_method","uri":"$request_uri","status":"$status","seconds":"$request_time",'
		'"in":"$request_length","out":"$bytes_sent","tls":"$ssl_protocol","agent":"$http_user_agent",'
		'"range":"$http_range","version":"$http_x_ms_version","user":"$remote_user","upstream":"$upstream_addr",'
		'"location":"$sent_http_location","challenge":"$sent_http_www_authenticate"}';
	access_log access.log hop;

	client_body_temp_path body;
	proxy_temp_path proxied;
	fastcgi_temp_path unused;
	uwsgi_temp_path unused;
	scgi_temp_path unused;

	proxy_http_version 1.1;
	proxy_read_timeout {{.Silence}}s;
	proxy_buffers 16 64k;
	proxy_buffer_size 64k;
	# As in nginx: proxy_request_buffering is on, client_max_body_size is 1m unless a location says otherwise.

	server {
		listen {{.Host}}:{{.Port}} ssl default_server;
		ssl_protocols TLSv1.2;
		ssl_certificate server.pem;
		ssl_certificate_key server.key;
		ssl_client_certificate trust.pem;
		ssl_verify_client optional_no_ca;
		ssl_verify_depth 7;

		# Blob storage's protocol, which nobody here speaks.
		if ($http_x_ms_version) { rewrite ^ /blob-storage last; }
{{- if not .Registry}}
		# No registry here: whatever begins with /v is for the layer above.
		if ($uri ~ "^/v.") { rewrite ^(/v.+)$ /above$1 last; }
{{- end}}
{{- if .Parent}}

		location ~ ^/above/(.*)$ {
			proxy_ssl_server_name on;
			proxy_ssl_name {{.Module}}; # the parent's proxy must be called as this one is
			proxy_ssl_verify on;
			proxy_ssl_verify_depth 7;
			proxy_ssl_trusted_certificate trust.pem;
			proxy_pass https://{{.Parent}}:{{.Port}}/$1$is_args$args;
		}
{{- end}}

		# For edgeHub, which is not here; it stands before /v2 because it is a regular expression, and its first half
		# alone is anchored.
		location ~ ^/devices|twins/ { return 500; }
{{- if .Registry}}

		location /v2 {
			proxy_pass http://{{.Registry}};
			proxy_set_header X-Forwarded-Host $http_host;
			proxy_set_header X-Forwarded-Proto $scheme;
			client_max_body_size 1000g;
		}
		location /acr {
			proxy_pass http://{{.Registry}};
			proxy_set_header X-Forwarded-Host $http_host;
			proxy_set_header X-Forwarded-Proto $scheme;
			client_max_body_size 1000g;
		}
{{- end}}
		location / { return 404; }
	}
}
`))

// render returns nginx.conf.
func (o Options) render() ([]byte, error) {
	var out bytes.Buffer
	silence := o.Silence
	if silence <= 0 {
		silence = time.Hour
	}
	err := configuration.Execute(&out, struct {
		Options
		Silence int
		Root    bool
	}{o, int(silence.Seconds()), os.Getuid() == 0})
	return out.Bytes(), err
}
