//! TLS for the tests: an authority of their own, and sockets that speak it on either side.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, ServerConfig, ServerConnection,
    StreamOwned, SupportedProtocolVersion, crypto::ring, server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

use super::{Address, Connection, PATIENCE, wire::Socket};

/// Signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names and IP addresses, good for servers and clients.
    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        self.issue_in(names, 2020..2120)
    }

    /// One that is valid from the beginning of one year to that of another.
    pub(crate) fn issue_in(&self, names: &[&str], years: std::ops::Range<i32>) -> Pair {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    /// For a client that trusts this authority only.
    pub(crate) fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// Opens a connection to `localhost` as a client that trusts this authority only.
    pub(crate) fn open(&self, to: &Address) -> io::Result<(Connection, Hello)> {
        open(to, self.client(rustls::ALL_VERSIONS, &["http/1.1"]))
    }
}

impl Pair {
    fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()
    }

    /// The certificate as it goes over the wire.
    pub(crate) fn der(&self) -> Vec<u8> {
        self.certificate().to_vec()
    }

    /// For a server with this certificate; with `clients`, one that demands certificates of that authority.
    pub(crate) fn server(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        clients: Option<&Authority>,
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let builder = match clients {
            Some(authority) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider)
                    .build()
                    .unwrap(),
            ),
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        Arc::new(builder.with_single_cert(vec![self.certificate()], key).unwrap())
    }
}

/// What a handshake ended in.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) version: ProtocolVersion,
    pub(crate) alpn: Option<Vec<u8>>,
    /// The server's own certificate.
    pub(crate) certificate: Vec<u8>,
}

/// Opens a connection to `localhost` and waits for the end of the handshake.
pub(crate) fn open(to: &Address, config: ClientConfig) -> io::Result<(Connection, Hello)> {
    let Address::Tcp(address) = to else { panic!("TLS over TCP only") };
    let mut socket = TcpStream::connect_timeout(address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    let hello = Hello {
        version: tls.protocol_version().unwrap(),
        alpn: tls.alpn_protocol().map(<[u8]>::to_vec),
        certificate: tls.peer_certificates().unwrap()[0].to_vec(),
    };
    let tcp = socket.try_clone()?;
    let stream = Box::new(StreamOwned::new(tls, socket));
    let socket = Socket::Tls(Secured { tcp, stream, linger: false });
    socket.prepare()?;
    Ok((Connection::over(socket), hello))
}

/// The server's side of a connection; the handshake comes with the first read.
pub(crate) fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<Socket> {
    let tls = ServerConnection::new(config).unwrap();
    let stream = Box::new(StreamOwned::new(tls, tcp.try_clone()?));
    Ok(Socket::Tls(Secured { tcp, stream, linger: true }))
}

/// A socket that speaks TLS.
pub(crate) struct Secured {
    tcp: TcpStream,
    stream: Box<dyn Stream>,
    /// Reads on at the end, so that an alert is not destroyed by a reset on its way.
    linger: bool,
}

pub(crate) trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

impl Secured {
    /// What is below.
    pub(crate) const fn tcp(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }

    pub(crate) fn set_read_timeout(&self, limit: Duration) -> io::Result<()> {
        self.tcp.set_read_timeout(Some(limit))
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.tcp.shutdown(how)
    }
}

impl Read for Secured {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Secured {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        if self.linger && self.tcp.shutdown(Shutdown::Write).is_ok() {
            drop(io::copy(&mut self.tcp, &mut io::sink()));
        }
    }
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secured({:?})", self.tcp)
    }
}
