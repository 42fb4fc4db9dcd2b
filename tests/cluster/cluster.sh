#!/usr/bin/env bash
# A Kubernetes of one node with Kubeflow Pipelines 2 on this machine, for 'make test-cluster'.
#   tests/cluster/cluster.sh up          builds what is missing, starts all; prints KUBECONFIG=...
#   tests/cluster/cluster.sh load IMAGE  gives an image of this machine's Docker to the cluster
#   tests/cluster/cluster.sh down        ends what 'up' started and forgets its state
# Needs root, Debian 12's archive, Go with a module proxy, and Docker with the project's image
# (mnist-autoencoder:0.1.0, docs/kubeflow.md). KFP_BINARIES
# names a folder with programs of one release of Kubeflow Pipelines 2: apiserver, driver,
# launcher-v2, persistence_agent, scheduledworkflow, config/ (the API server's) and manifests/
# (its manifests/kustomize); and Argo's workflow-controller, argoexec and argo-manifests/ of the
# version in that release's go.mod. They are no Go modules of the proxy, so that none are built here.
#
# Other than in an installation by manifests: everything Go is one image; MariaDB is mysql, ML
# Metadata's C++ store behind tests/cluster/images/metadata_server.py its server, gofakes3 (in memory,
# lets everybody in) SeaweedFS, the embedded server TensorFlow Serving unless SERVING_BINARY names
# one. No web interface, cache or viewer. Containers request 20m of CPU, limits are as written.
# No CNI enforces network policies.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PROJECT=$(cd "$HERE/../.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mnist-ae-cluster
STATE=${CLUSTER_STATE:-/var/tmp/mnist-ae-cluster}
RUN=/run/mnist-ae-cluster
KUBERNETES=v1.33.13
COREDNS=v1.14.7
GOFAKES3=v1.2.0
PODS=10.244.0.0/24
SERVICES=10.96.0.0/16
DNS=10.96.0.10
NODE=mnist-ae-node
export KUBECONFIG=$STATE/admin.kubeconfig
export PATH=$CACHE/bin:$PATH

say() { echo "$(date +%T) $*" >&2; }

# --- Programs ------------------------------------------------------------------------------

build() { # MODULE VERSION NAME=PACKAGE ...
  local module=$1 version=$2 source=$CACHE/src/${1##*/}-$2 target
  shift 2
  for target; do [ -x "$CACHE/bin/${target%%=*}" ] || break; done
  [ -x "$CACHE/bin/${target%%=*}" ] && return
  say "building $module $version"
  if [ ! -d "$source" ]; then
    mkdir -p "$CACHE/src" "$CACHE/bin"
    (cd "$CACHE" && go mod download "$module@$version")
    cp -r "$(cd "$CACHE" && go mod download -json "$module@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')" "$source.new"
    chmod -R u+w "$source.new"
    # Kubernetes keeps its parts beside it, which a module has not; they are modules themselves.
    rm -rf "$source.new"/go.work* "$source.new/vendor"
    sed -i -E -e '/=> \.\/staging\//d' \
      -e "s#^(\s+k8s\.io/[a-z-]+) v0\.0\.0\$#\1 v0${version#v1}#" "$source.new/go.mod"
    mv "$source.new" "$source"
  fi
  # CoreDNS knows many clouds; names of the cluster are enough.
  [ ! -f "$source/plugin.cfg" ] || (cd "$source" && printf '%s:%s\n' errors errors ready ready \
    cache cache kubernetes kubernetes >plugin.cfg && go generate coredns.go)
  for target; do
    (cd "$source" && CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=mod" go build -trimpath \
      -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=33" \
      -o "$CACHE/bin/${target%%=*}" "./${target#*=}")
  done
}

programs() {
  local name archive=$CACHE/debian
  [ -n "${KFP_BINARIES:-}" ] || { echo "cluster.sh: KFP_BINARIES names no folder; see its head" >&2; exit 2; }
  for name in apiserver driver launcher-v2 persistence_agent scheduledworkflow workflow-controller \
    argoexec config manifests argo-manifests; do
    [ -e "$KFP_BINARIES/$name" ] || { echo "cluster.sh: $KFP_BINARIES has no $name" >&2; exit 2; }
  done
  for name in containerd runc iptables openssl docker go; do
    command -v $name >/dev/null || { echo "cluster.sh: no $name on this machine" >&2; exit 2; }
  done
  build k8s.io/kubernetes $KUBERNETES kube-apiserver=cmd/kube-apiserver \
    kube-controller-manager=cmd/kube-controller-manager kube-scheduler=cmd/kube-scheduler \
    kubelet=cmd/kubelet kube-proxy=cmd/kube-proxy
  build github.com/coredns/coredns $COREDNS coredns=.
  build github.com/johannesboyne/gofakes3 $GOFAKES3 gofakes3=cmd/gofakes3
  [ -e "$archive/done" ] && return
  say "etcd, CNI plug-ins and busybox from Debian"
  mkdir -p "$archive"
  (cd "$archive" && apt-get download etcd-server containernetworking-plugins busybox-static >&2 &&
    for name in *.deb; do dpkg -x "$name" .; done && touch done)
}

# --- Images --------------------------------------------------------------------------------

images() {
  local context=$STATE/context name
  docker image inspect mnist-autoencoder:0.1.0 >/dev/null ||
    { echo "cluster.sh: no mnist-autoencoder:0.1.0; docs/kubeflow.md says how to build it" >&2; exit 2; }
  mkdir -p "$context/bin"
  for name in apiserver driver launcher-v2 persistence_agent scheduledworkflow workflow-controller argoexec; do
    cp -u "$KFP_BINARIES/$name" "$context/bin/"
  done
  cp -u "$CACHE/bin/coredns" "$CACHE/bin/gofakes3" "$CACHE/debian/bin/busybox" "$context/bin/"
  cp -r "$KFP_BINARIES/config" "$context/"
  cp -u "${SERVING_BINARY:-$HERE/images/tensorflow_model_server}" "$context/tensorflow_model_server"
  cp -u "$HERE/images/mysqld.sh" "$context/"
  for name in programs mysql serving; do
    say "image $name"
    docker build --quiet --network=host --file="$HERE/images/Dockerfile" --target=$name \
      --tag="mnist-ae-cluster-$name" "$context" >&2
  done
  load mnist-autoencoder:0.1.0 mnist-ae-cluster-programs mnist-ae-cluster-mysql mnist-ae-cluster-serving
  alias_of mnist-ae-cluster-programs pause:cluster busybox:1.36.1 cluster-programs:1
  alias_of mnist-ae-cluster-mysql mysql:8.0.40 mysql:8.4
  alias_of mnist-ae-cluster-serving tensorflow/serving:2.16.1 cluster-serving:1
}

load() { # IMAGE ...
  say "loading $*"
  docker save "$@" | containers images import - >&2
}

alias_of() { # IMAGE NAME ...
  local name
  for name in "${@:2}"; do containers images tag --force "$(named "$1")" "$(named "$name")" >&2; done
}

named() { # as containerd names what Docker does
  local name=$1
  [[ $name == *:* ]] || name=$name:latest
  [[ $name == */* ]] && echo "docker.io/$name" || echo "docker.io/library/$name"
}

containers() { ctr --address $RUN/containerd.sock --namespace k8s.io "$@"; }

# --- The cluster ---------------------------------------------------------------------------

start() { # NAME COMMAND ...
  local name=$1
  shift
  setsid "$@" >"$STATE/log/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/pid/$name"
}

await() { # SECONDS COMMAND ...
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { echo "cluster.sh: in vain: $*; see $STATE/log" >&2; exit 1; }
    sleep 0.5
  done
}

certificate() { # NAME SUBJECT [NAMES]
  local pki=$STATE/pki
  openssl req -newkey rsa:2048 -nodes -keyout "$pki/$1.key" -subj "$2" -out "$pki/$1.csr" 2>/dev/null
  openssl x509 -req -in "$pki/$1.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -days 30 \
    -out "$pki/$1.crt" -extfile <(echo "subjectAltName=${3:-DNS:$1}") 2>/dev/null
}

kubeconfig() { # NAME SUBJECT
  local config=$STATE/$1.kubeconfig
  certificate "$1" "$2"
  kubectl config --kubeconfig="$config" set-cluster here --server="https://$ADDRESS:6443" \
    --certificate-authority="$STATE/pki/ca.crt" --embed-certs >/dev/null
  kubectl config --kubeconfig="$config" set-credentials me --client-certificate="$STATE/pki/$1.crt" \
    --client-key="$STATE/pki/$1.key" --embed-certs >/dev/null
  kubectl config --kubeconfig="$config" set-context here --cluster=here --user=me >/dev/null
  kubectl config --kubeconfig="$config" use-context here >/dev/null
}

keys() {
  local pki=$STATE/pki
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$pki/ca.key" -out "$pki/ca.crt" -days 30 \
    -subj /CN=mnist-ae-cluster 2>/dev/null
  openssl genrsa -out "$pki/accounts.key" 2048 2>/dev/null
  certificate apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$ADDRESS,IP:${SERVICES%.0/*}.1"
  certificate front-proxy /CN=front-proxy
  certificate kubelet-serving "/CN=$NODE" "DNS:$NODE,IP:$ADDRESS,IP:127.0.0.1"
  kubeconfig admin /O=system:masters/CN=admin
  kubeconfig controller-manager /CN=system:kube-controller-manager
  kubeconfig scheduler /CN=system:kube-scheduler
  kubeconfig kubelet "/O=system:nodes/CN=system:node:$NODE"
  kubeconfig proxy /CN=system:kube-proxy
}

control_plane() {
  local pki=$STATE/pki
  start etcd "$CACHE/debian/usr/bin/etcd" --data-dir="$STATE/etcd" --unsafe-no-fsync \
    --listen-client-urls=http://127.0.0.1:23790 --advertise-client-urls=http://127.0.0.1:23790 \
    --listen-peer-urls=http://127.0.0.1:23800
  start apiserver kube-apiserver --etcd-servers=http://127.0.0.1:23790 --advertise-address="$ADDRESS" \
    --authorization-mode=Node,RBAC --allow-privileged --service-cluster-ip-range=$SERVICES \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
    --client-ca-file="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" \
    --kubelet-certificate-authority="$pki/ca.crt" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$pki/accounts.key" --service-account-signing-key-file="$pki/accounts.key" \
    --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" \
    --feature-gates=MutatingAdmissionPolicy=true \
    --runtime-config=admissionregistration.k8s.io/v1alpha1=true
  await 60 kubectl get --raw /readyz
  start controller-manager kube-controller-manager --kubeconfig="$STATE/controller-manager.kubeconfig" \
    --service-account-private-key-file="$pki/accounts.key" --root-ca-file="$pki/ca.crt" \
    --use-service-account-credentials --leader-elect=false
  start scheduler kube-scheduler --kubeconfig="$STATE/scheduler.kubeconfig" --leader-elect=false
}

node() {
  mkdir -p "$STATE/cni" "$STATE/kubelet"
  cat >"$STATE/containerd.toml" <<TOML
version = 2
root = "$STATE/containerd"
state = "$RUN/containerd"
[grpc]
  address = "$RUN/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:cluster"
  # A machine without CAP_SYS_RESOURCE may only raise it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CACHE/debian/usr/lib/cni"
    conf_dir = "$STATE/cni"
TOML
  cat >"$STATE/cni/10-bridge.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "mnist-ae0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$STATE/addresses", "ranges": [[{"subnet": "$PODS"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}},
  {"type": "firewall"}]}
JSON
  cat >"$STATE/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $STATE/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $STATE/pki/kubelet-serving.crt
tlsPrivateKeyFile: $STATE/pki/kubelet-serving.key
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDNS: [$DNS]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$RUN/containerd.sock
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: 2%, imagefs.available: 2%, memory.available: 200Mi}
YAML
  cat >"$STATE/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $STATE/proxy.kubeconfig}
clusterCIDR: $PODS
hostnameOverride: $NODE
mode: iptables
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
  start containerd containerd --config "$STATE/containerd.toml"
  await 30 containers version
}

join() {
  start kubelet kubelet --config="$STATE/kubelet.yaml" --kubeconfig="$STATE/kubelet.kubeconfig" \
    --root-dir="$STATE/kubelet" --hostname-override=$NODE --node-ip="$ADDRESS"
  start proxy kube-proxy --config="$STATE/proxy.yaml"
  await 60 kubectl get node $NODE
  kubectl wait --for=condition=Ready node/$NODE --timeout=60s >&2
}

# --- Kubeflow Pipelines --------------------------------------------------------------------

install_kfp() {
  local install=$STATE/install folder version
  say "Kubeflow Pipelines"
  for folder in mysql objects metadata; do
    mkdir -p "$STATE/volumes/$folder" && chmod 777 "$STATE/volumes/$folder"
  done
  mkdir -p "$install"
  cp -r "$HERE/install/." "$KFP_BINARIES/manifests" "$KFP_BINARIES/argo-manifests" "$install/"
  cp "$HERE/images/metadata_server.py" "$install/"
  version=$(sed -n 's/^  appVersion: //p' "$install/manifests/base/installs/generic/pipeline-install-config.yaml")
  sed -i -e "s#@DNS@#$DNS#; s#@STATE@#$STATE#; s#@KFP@#$version#" "$install"/*.yaml
  kubectl apply -f "$install/cluster.yaml" >&2
  await 60 kubectl get mutatingadmissionpolicybindings requests
  kubectl apply --server-side -k "$install/argo-manifests/base/crds/minimal" >&2
  kubectl apply -f "$install/manifests/base/pipeline/cluster-scoped/scheduled-workflow-crd.yaml" >&2
  kubectl kustomize --load-restrictor LoadRestrictionsNone "$install" | kubectl apply -f - >&2
  kubectl -n kubeflow wait --for=condition=Available deployment --all --timeout=300s >&2
}

# --- Commands ------------------------------------------------------------------------------

up() {
  [ "$(id -u)" = 0 ] || { echo "cluster.sh: needs root" >&2; exit 2; }
  [ ! -e "$STATE/pid/kubelet" ] || { echo "cluster.sh: up already; 'down' ends it" >&2; exit 2; }
  programs
  mkdir -p "$STATE"/{pki,log,pid} $RUN
  ADDRESS=$(ip route get 192.0.2.254 | sed -n 's/.* src \([^ ]*\).*/\1/p')
  keys
  node
  images
  control_plane
  join
  install_kfp
  echo "KUBECONFIG=$KUBECONFIG"
}

down() {
  local name container
  if [ -e "$STATE/pid/kubelet" ]; then
    end kubelet
    for container in $(containers tasks ls -q); do
      containers tasks kill --signal SIGKILL "$container" 2>/dev/null || true
    done
  fi
  for name in proxy scheduler controller-manager apiserver etcd containerd; do end $name; done
  { mount | sed -n "s#.* on \($STATE/kubelet[^ ]*\|$RUN[^ ]*\) .*#\1#p" | sort -r | xargs -r umount; } 2>/dev/null || true
  iptables-save | grep -v 'KUBE-\|CNI-' | iptables-restore
  find /sys/fs/cgroup -depth -type d -path '*kubepods*' -exec rmdir {} + 2>/dev/null || true
  ip link delete mnist-ae0 2>/dev/null || true
  rm -rf "$STATE" $RUN
}

end() { # NAME
  local pid
  pid=$(cat "$STATE/pid/$1" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 40); do [ -e "/proc/$pid" ] || break; sleep 0.25; done
  kill -KILL "$pid" 2>/dev/null || true
  rm -f "$STATE/pid/$1"
}

case ${1:-} in
  up | down) "$1" ;;
  load) [ $# -eq 2 ] && load "$2" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \?//p}' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
